"""An agent of strands' with its summarizing manager, seven turns."""

import os

from strands import Agent, tool
from strands.agent.conversation_manager import SummarizingConversationManager
from strands.models.openai import OpenAIModel


@tool
def weather(place: str) -> str:
    """The weather at a place.

    Args:
        place: its name
    """
    return f"sunny all day in {place}"


model = OpenAIModel(
    client_args={
        "base_url": os.environ["BASE_URL"],
        "api_key": os.environ["API_KEY"],
        "default_headers": {"sessionId": os.environ["SESSION"]},
    },
    model_id="m",
)
manager = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
agent = Agent(
    model=model,
    tools=[weather] if os.environ.get("TOOLS") else [],
    system_prompt="You help with plans, briefly.",
    conversation_manager=manager,
    callback_handler=None,
)
for number, text in enumerate(os.environ["TEXTS"].split("|"), 1):
    agent(text)
    if number % 3 == 0:  # as its manager does by itself where a context is full
        manager.reduce_context(agent)
