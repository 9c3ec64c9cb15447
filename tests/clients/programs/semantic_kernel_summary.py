"""A chat of semantic-kernel's whose reducer sums up what was said, seven turns."""

import asyncio
import os

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistorySummarizationReducer


async def main() -> None:
    client = AsyncOpenAI(
        base_url=os.environ["BASE_URL"],
        api_key=os.environ["API_KEY"],
        default_headers={"sessionId": os.environ["SESSION"]},
    )
    service = OpenAIChatCompletion(ai_model_id="m", async_client=client)
    history = ChatHistorySummarizationReducer(service=service, target_count=3, threshold_count=2)
    history.add_system_message("You help with plans, briefly.")
    for text in os.environ["TEXTS"].split("|"):
        history.add_user_message(text)
        reply = await service.get_chat_message_content(history, OpenAIChatPromptExecutionSettings())
        history.add_message(reply)
        await history.reduce()


asyncio.run(main())
