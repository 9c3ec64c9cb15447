"""An agent of LangChain's that lets its middleware sum up what was said, five turns."""

import os

from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

TRIGGER, KEEP = map(int, os.environ.get("LIMITS", "5,2").split(","))


@tool
def weather(place: str) -> str:
    """The weather at a place."""
    return f"sunny all day in {place}"


model = ChatOpenAI(
    model="m",
    base_url=os.environ["BASE_URL"],
    api_key=os.environ["API_KEY"],
    default_headers={"sessionId": os.environ["SESSION"]},
    streaming=os.environ.get("STREAM") == "1",
)
agent = create_agent(
    model,
    tools=[weather] if os.environ.get("TOOLS") else [],
    system_prompt=os.environ.get("PROMPT"),
    middleware=[SummarizationMiddleware(model=model, trigger=("messages", TRIGGER), keep=("messages", KEEP))],
)
messages = []
for text in os.environ["TEXTS"].split("|"):
    messages = agent.invoke({"messages": [*messages, {"role": "user", "content": text}]})["messages"]
