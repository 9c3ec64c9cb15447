"""What known clients ask beside their chats, and how they go on from a summary: one story for each shape.

Each request is `chat` (it belongs to the conversation) or `side`, and goes upstream as it was sent. The texts are made
up; the shapes are those of the clients that the stories name.
"""

from __future__ import annotations

import json

import pytest

from tests.support.conversation import Answer, Session
from tests.support.speakers import Json, assistant, body_of, line_of, plainly, sent_to, software, system, user

Step = tuple[str, list[Json], int, bool | None, Json]  # what it is, its messages, tools and stream, the reply

S, OTHER = system("You are a helpful agent with many tools."), system("You name what you are shown.")
SUMMARY = "The summary of all that was said until now."
LINES = 'It says "no"\nto all of it, and more.'
LONG = " ".join(["This is a rather long answer of the model, with many words."] * 20)


def u(number: int) -> Json:
    return user(f"Question number {number} of the user.")


def a(number: int) -> Json:
    return assistant(f"The answer number {number} is this and that.")


def t(number: int) -> str:
    return str(a(number)["content"])


def call(id: str) -> Json:
    function = {"name": "f", "arguments": "{}"}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": id, "type": "function", "function": function}]}


def result(id: str) -> Json:
    return {"role": "tool", "tool_call_id": id, "content": "What the tool found."}


def told(*messages: Json) -> str:
    return "\n".join([f"{each['role']}: {each['content']}" for each in messages])


WHOLE: list[Step] = [("chat", [*S, u(1)], 5, True, a(1)), ("chat", [*S, u(1), a(1), u(2)], 5, True, a(2))]
PLAIN: list[Step] = [("chat", [u(1)], 0, True, a(1)), ("chat", [u(1), a(1), u(2)], 0, True, a(2))]
SUMMED: list[Step] = [*WHOLE, ("chat", [*S, u(1), a(1), u(2), a(2), user("Sum it up.")], 5, True, assistant(SUMMARY))]
SELECTS = "Select who speaks next.\n"
AGENTS: list[Step] = [
    ("side", system(SELECTS + told(u(1))), 0, None, assistant("finder")),
    ("chat", [*S, u(1)], 0, None, a(1)),
    ("side", system(SELECTS + told(u(1), a(1))), 0, None, assistant("writer")),
    ("chat", [*system("You write."), u(1), user(t(1))], 0, None, a(2)),
    ("side", system(SELECTS + told(u(1), a(1), a(2))), 0, None, assistant("finder")),
    ("chat", [*S, u(1), a(1), user(t(2))], 0, None, a(3)),
]

STORIES: dict[str, list[Step]] = {
    "zed: a title behind the whole list, without prompt and tools": [
        WHOLE[0],
        ("side", [u(1), a(1), user("Name it.")], 0, True, assistant("A name")),
        WHOLE[1],
        ("side", [u(1), a(1), u(2), a(2), user("Name it.")], 0, True, assistant("A name")),
    ],
    "qwen-code: who speaks next, under the chat's prompt, with one tool and not streamed": [
        WHOLE[0],
        ("side", [*S, u(1), a(1), user("Who is next?")], 1, None, assistant("model")),
        WHOLE[1],
        ("side", [*S, u(1), a(1), u(2), a(2), user("Who is next?")], 1, None, assistant("user")),
    ],
    "goose: a name for the user's words, behind the first turn": [
        WHOLE[0],
        ("side", [*OTHER, user(f"The first words:\n{told(u(1))}\nName it.")], 0, None, assistant("A name")),
        WHOLE[1],
    ],
    "goose: a name for the user's words, in a tool loop": [
        ("chat", [*S, u(1)], 5, True, call("c1")),
        ("side", [*OTHER, user(f"The first words:\n{told(u(1))}\nName it.")], 0, None, assistant("A name")),
        ("chat", [*S, u(1), call("c1"), result("c1")], 5, True, a(1)),
    ],
    "goose: the transcript in the prompt, then its summary and a reply of the client's": [
        *WHOLE,
        ("side", [*system(told(u(1), a(1), u(2), a(2))), user("Sum it up.")], 0, None, assistant(SUMMARY)),
        ("chat", [*S, user(SUMMARY), assistant("I go on from it."), u(3)], 5, True, a(3)),
    ],
    "autogen: a selector whose request is a system message alone": AGENTS,
    "codex: a summary that was asked for in the chat itself": [
        *SUMMED,
        ("chat", [*S, user(f"So far:\n{SUMMARY}"), u(3)], 5, True, a(3)),
        ("chat", [*S, user(f"So far:\n{SUMMARY}"), u(3), a(3), u(4)], 5, True, a(4)),
    ],
    "codex: such a summary behind what the user said": [
        *SUMMED,
        ("chat", [*S, u(1), u(2), user(f"So far:\n{SUMMARY}")], 5, True, a(3)),
        ("chat", [*S, u(1), u(2), user(f"So far:\n{SUMMARY}"), a(3), u(4)], 5, True, a(4)),
    ],
    "cherry studio: a quote in JSON": [
        PLAIN[0],
        ("chat", [u(1), a(1), u(2)], 0, True, assistant(LINES)),
        ("side", [user(f"Name it: {json.dumps([{'said': LINES}])}")], 0, None, assistant("A name")),
    ],
    "agent-framework: a quote of the beginning": [
        PLAIN[0],
        ("chat", [u(1), a(1), u(2)], 0, True, assistant(LONG)),
        ("side", [user(f"Name it: {LONG[:300]}...")], 0, None, assistant("A name")),
    ],
    "google-adk: agents that tell each other's replies in a frame": [
        ("chat", [*S, u(1)], 0, None, a(1)),
        ("chat", [*system("You write."), u(1), user(f"finder said: {t(1)}")], 0, None, a(2)),
        ("chat", [*S, u(1), a(1), user(f"writer said: {t(2)}")], 0, None, a(3)),
        (
            "chat",
            [*system("You write."), u(1), user(f"finder said: {t(1)}"), a(2), user(f"finder said: {t(3)}")],
            0,
            None,
            a(4),
        ),
    ],
    "haystack: the prompt once more with each run": [
        ("chat", [*S, u(1)], 3, None, a(1)),
        ("chat", [*S, *S, u(1), a(1), u(2)], 3, None, a(2)),
        ("chat", [*S, *S, *S, u(1), a(1), u(2), a(2), u(3)], 3, None, a(3)),
    ],
}

HINT = "\n\nKeep to the rules of this folder."  # behind the newest message, and gone with the next list
BROUGHT = [user("An example of a question."), assistant("An example of a reply.")]
CLOCK = "You help with plans of all kinds. It is day {} of May."


def hinted(number: int) -> Json:
    return user(f"{u(number)['content']}{HINT}")


def sums(*messages: Json) -> Step:
    return ("side", [*OTHER, user(told(*messages))], 0, None, assistant(SUMMARY))


STORIES |= {
    "a chat that brought a history along, and a title without a prompt": [
        ("chat", [*S, *BROUGHT, u(1)], 0, True, a(1)),
        ("chat", [*S, *BROUGHT, u(1), a(1), u(2)], 0, True, a(2)),
        ("side", [user(f"Name it:\n{t(2)}")], 0, False, assistant("A name")),
    ],
    "a chat whose first message loses its hint, and a title": [
        ("chat", [hinted(1)], 0, True, a(1)),
        ("chat", [u(1), a(1), hinted(2)], 0, True, a(2)),
        ("side", [user(f"Name it:\n{t(2)}")], 0, None, assistant("A name")),
    ],
    "a memory agent, after a list that followed the agent's branch": [
        ("chat", [*S, hinted(1)], 5, True, a(1)),
        ("side", [*OTHER, u(1), a(1), user("Remember it.")], 3, True, assistant("Done so far.")),
        ("chat", [*S, u(1), a(1), hinted(2)], 5, True, a(2)),
        ("side", [*OTHER, u(1), a(1), u(2), a(2), user("Remember it.")], 3, True, assistant("Done again.")),
    ],
    "a summary as the first prompt of all, behind examples": [
        ("chat", [*BROUGHT, u(1)], 0, True, a(1)),
        ("chat", [*BROUGHT, u(1), a(1), u(2)], 0, True, a(2)),
        sums(u(1), a(1), u(2), a(2)),
        ("chat", [*system(SUMMARY), *BROUGHT, u(3)], 0, True, a(3)),
    ],
    "a summary as the first prompt of all, before the whole list and its newest message without a hint": [
        ("chat", [hinted(1)], 3, None, a(1)),
        ("chat", [u(1), a(1), hinted(2)], 3, None, a(2)),
        ("side", [*OTHER, u(1), a(1), u(2), a(2), user("Sum it up.")], 1, None, assistant(SUMMARY)),
        ("chat", [*system(SUMMARY), u(1), a(1), u(2), a(2), hinted(3)], 3, None, a(3)),
    ],
    "a summary behind a prompt with a clock, and nothing else": [
        ("chat", [*system(CLOCK.format(1)), u(1)], 0, True, a(1)),
        ("chat", [*system(CLOCK.format(2)), u(1), a(1), u(2)], 0, True, a(2)),
        sums(u(1), a(1), u(2), a(2)),
        ("chat", [*system(CLOCK.format(3) + "\n\n" + SUMMARY), u(3)], 0, True, a(3)),
    ],
    "a tool loop, and a summary in the place of all of it": [
        ("chat", [u(1)], 5, None, a(1)),
        ("chat", [u(1), a(1), u(2)], 5, None, a(2)),
        sums(u(1), a(1), u(2), a(2)),
        ("chat", [*system(SUMMARY), u(1), u(3)], 5, None, call("c1")),
        ("chat", [*system(SUMMARY), u(1), u(3), call("c1"), result("c1")], 5, None, a(3)),
        ("side", [user(told(u(3), a(3)))], 0, None, assistant("Another summary of what was said.")),
        ("chat", [u(1), assistant("So far:\nAnother summary of what was said."), u(4)], 5, None, a(4)),
    ],
}

FIRST_IS_SIDE = ("autogen: a selector whose request is a system message alone",)  # not known until the chat comes


@pytest.mark.parametrize("story", STORIES)
def test_each_request_is_what_it_is(story: str) -> None:
    session, chat = Session(), software("it/1.0")
    for n, (what, messages, tools, stream, reply) in enumerate(STORIES[story]):
        posted = session.post(body_of(messages, tools, stream), Answer(reply), client=chat)
        assert plainly(sent_to(posted)) == plainly(messages), (n, posted.plan.reason)
        unknown = n == 0 and story in FIRST_IS_SIDE
        assert posted.plan.side == (what == "side") or unknown, (n, posted.plan.reason)
    side_requests = [step[-1]["content"] for step in STORIES[story] if step[0] == "side"]
    assert not [each for each in line_of(session) if each["role"] == "assistant" and each["content"] in side_requests]
    latest, reply = [(step[1], step[-1]) for step in STORIES[story] if step[0] == "chat"][-1]
    said = [*[each for each in latest if each["role"] != "system"], reply]
    if "google-adk" not in story and "autogen" not in story:  # whose lists tell some replies in other words
        assert plainly(line_of(session)) == plainly(said)
    assert plainly(line_of(session))[-1:] == plainly([reply])


def test_a_new_message_that_tells_the_latest_reply_is_no_summary() -> None:
    """One message: nobody can tell a summary with a question behind it from a user's quote of it."""
    session, chat = Session(), software("it/1.0")
    for _, messages, tools, stream, reply in SUMMED:
        session.post(body_of(messages, tools, stream), Answer(reply), client=chat)
    posted = session.post(body_of([*S, user(f"You said: {SUMMARY}\nWhy?")], 5, True), Answer(a(3)), client=chat)
    assert posted.plan.reason == "no reply of ours in it"
    assert len(sent_to(posted)) == 8


def test_a_new_message_that_quotes_the_user_is_none_beside_the_chat_while_the_stream_stays() -> None:
    session, script = Session(), software("script")
    session.post(body_of([*S, u(1)], 5, True), Answer(a(1)), client=script)
    posted = session.post(body_of([user(f"Again: {told(u(1))}")], 0, True), Answer(a(2)), client=script)
    assert plainly(sent_to(posted))[:3] == plainly([*S, u(1), a(1)])


def test_a_chat_that_brought_a_history_along_is_not_known_for_new_messages_where_others_spoke() -> None:
    session, chat = Session(), software("it/1.0")
    session.post(body_of([*S, *BROUGHT, u(1)], 0, True), Answer(a(1)), client=chat)
    session.post(body_of([u(2)], 0, True), Answer(a(2)), client=software("script"))
    session.post(body_of([*S, *BROUGHT, u(1), a(1), u(3)], 0, True), Answer(a(3)), client=chat)
    posted = session.post(body_of([user(f"Name it:\n{t(3)}")], 0, None), Answer(a(4)), client=chat)
    assert posted.plan.side, posted.plan.reason


def test_a_client_without_tools_is_not_held_against_an_agent_that_has_some() -> None:
    session = Session()
    session.post(body_of([u(1)], 0, True), Answer(a(1)), client=software("script"))
    session.post(body_of([*S, u(2)], 5, True), Answer(a(2)), client=software("agent"))
    quote = user(f"{told(u(1), a(1))}\nWhy?")
    posted = session.post(body_of([quote], 0, True), Answer(a(3)), client=software("script"))
    assert plainly(sent_to(posted)) == plainly([*S, u(1), a(1), u(2), a(2), quote])
