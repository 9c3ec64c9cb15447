"""An agent of LangChain's that lets its middleware sum up what was said, five turns."""

import os

from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def weather(place: str) -> str:
    """The weather at a place."""
    return f"sun in {place}"


model = ChatOpenAI(
    model="m",
    base_url=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
    default_headers={"sessionId": os.environ["SESSION"]},
    streaming=os.environ.get("STREAM") == "1",
)
agent = create_agent(
    model,
    tools=[weather],
    system_prompt="You help with plans, briefly.",
    middleware=[SummarizationMiddleware(model=model, trigger=("messages", 5), keep=("messages", 2))],
)
messages = []
for text in os.environ["TEXTS"].split("|"):
    messages = agent.invoke({"messages": [*messages, {"role": "user", "content": text}]})["messages"]
