"""An agent of smolagents' that plans before each step, one task after the other."""

import os

from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool


@tool
def weather(place: str) -> str:
    """The weather at a place.

    Args:
        place: its name
    """
    return f"sunny all day in {place}"


model = OpenAIModel(
    model_id="m",
    api_base=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
    client_kwargs={"default_headers": {"sessionId": os.environ["SESSION"]}},
)
kind = CodeAgent if os.environ.get("KIND") == "code" else ToolCallingAgent
agent = kind(
    tools=[weather], model=model, planning_interval=int(os.environ.get("INTERVAL", "1")), max_steps=6, verbosity_level=0
)
for number, text in enumerate(os.environ["TEXTS"].split("|")):
    agent.run(text, reset=number == 0)
