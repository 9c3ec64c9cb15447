"""Who sent what: a table of lists, each read against what came before it.

How a case is written stands in `notation.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.core.json_bytes import elements
from proxy.core.matching.planner import as_turns
from proxy.core.matching.reconcile import _Matcher, decide
from proxy.core.matching.retries import retried
from proxy.core.matching.usual import appended, is_one_new_message
from proxy.core.model import CLIENT
from proxy.core.plan import Decision, Mode, Plan
from proxy.dialects.chat import compose, fingerprints, wire
from tests.core.notation import (
    ask,
    held,
    in_flight,
    is_within,
    line_of,
    message,
    played,
    recorded,
    rewritten,
    sent_word,
    software,
    upstream,
    word,
    words_of,
)

DOC = Path(__file__).parents[3] / "docs" / "reconcile.md"

APPEND, ADOPT, RESEND = Decision.APPEND, Decision.ADOPT, Decision.RESEND
REWRITE, ASIDE = Decision.REWRITE, Decision.ASIDE


# The cases


@dataclass(frozen=True)
class Case:
    """One list. `system` is the block in force, `waits` whether a list that carries its history waits all the same."""

    name: str
    before: str
    list: str
    decision: Decision
    upstream: str
    reason: str
    parent: str | None = None
    system: str = ""
    mode: Mode = Mode.AUTO
    flight: str = ""
    waits: bool = False
    silent: bool = False  # the list repeats no reply that could be seen: it shows nothing of who sends it


FIRST = "the first of its session"
BROUGHT = "the first of its session, and it brings a history along"
NONE = "no reply of ours in it"
MAY = "the chat's list under another prompt: it may be said beside the chat"
EXAMPLES = "behind the examples that each request brings"
ALL = "all of the history, and then what is new"
END = "the end of the history, and then what is new"
INTERRUPTED = "the end of the history, and then what is new; what precedes it was cut on purpose"
DEPARTS = "it departs from the history"
SHORT = "it ends before the tip"
INSIDE = "it departs from the history within a window"
AMONG = "replies of ours at their place among other messages"
OTHER = "another system prompt than the session's, and no reply of ours"
BESIDE = "beside the first turn, under another system prompt or with other tools"
SAID = "the mode says so"

ONE = "u1 > a1; u2 > a2; u3 > a3"  # three turns of a client that sends one message
FULL = "u1 > a1; u1 a1 u2 > a2; u1 a1 u2 a2 u3 > a3"  # and of one that resends
CHAT = "s1 u1 > a1; s1 u1 a1 u2 > a2"  # with a system prompt

LONG = "a1" + "-word" * 60
SUMMARY = "-".join(["we-talked-of", *map(str, range(1, 40))])

# What is new follows the tip, all of it.
APPENDS = [
    Case("the first message", "", "u1", APPEND, "u1", FIRST),
    Case("the next message", ONE, "u4", APPEND, "u1 a1 u2 a2 u3 a3 | u4", NONE, "3"),
    Case("yes, the fifth time", "yes > ok;" * 4, "yes", APPEND, "yes ok yes ok yes ok yes ok | yes", NONE, "4"),
    Case("several messages", "u1 > a1", "u2 n1 u3", APPEND, "u1 a1 | u2 n1 u3", NONE, "1"),
    Case("what is no message", "u1 > a1", "! u2", APPEND, "u1 a1 | ! u2", NONE, "1"),
    Case("another message after a cut", "u1 > a1/", "u2 u3", APPEND, "u1 a1 | u2 u3", NONE, "1"),
    Case("the same message after a cut", "u1 > a1/", "u1", APPEND, "u1 a1 | u1", NONE, "1"),
    Case("the question and the result", "u1 > c1", "u1 r1", APPEND, "u1 c1 | u1 r1", NONE, "1"),
    Case("a late result", "u1 > c1; u2 > a2", "r1", APPEND, "u1 c1 u2 a2 | r1", NONE, "2"),
    Case(
        "a late result, of a call in a list",
        "u1 > c1; u2 > a2; u1 c1 u2 a2 u3 > a3",
        "r1",
        APPEND,
        "u1 c1 u2 a2 u3 a3 | r1",
        NONE,
        "3",
    ),
    Case("a result of nobody's call", "u1 > a1; u2 > a2", "r7", APPEND, "u1 a1 u2 a2 | r7", NONE, "2"),
    Case("no message at all", "u1 > a1", "", APPEND, "u1 a1 |", NONE, "1"),
    Case("one message after a resent list", FULL, "u4", APPEND, "u1 a1 u2 a2 u3 a3 | u4", NONE, "3"),
    Case("after a first turn that said nothing", "u1 > -", "u1", RESEND, "[u1]", ALL, "1", silent=True),
    Case("after such a turn, one message more", "u1 > -", "u1 u2", RESEND, "[u1] u2", ALL, "1", silent=True),
    Case("after such a turn, another message", "u1 > -", "u2", APPEND, "u1 | u2", NONE, "1"),
    Case("after a turn that said nothing", "u1 > a1; u2 > -", "u3", APPEND, "u1 a1 u2 | u3", NONE, "2"),
    Case("the same question after silence", "u1 > a1; u2 > -", "u2", APPEND, "u1 a1 u2 | u2", NONE, "2"),
    Case("all of it after silence", "u1 > a1; u2 > -", "u1 a1 u2 u3", RESEND, "[u1 a1 u2] u3", ALL, "2"),
    Case("the text again, another picture", "u1@cat > a1", "u1@dog", APPEND, "u1@cat a1 | u1@dog", NONE, "1"),
    Case("the system prompt is remembered", "s1 u1 > a1", "u2", APPEND, "u1 a1 | u2", NONE, "1", "s1"),
    Case("mode append", FULL, "u1 a1 u4", APPEND, "u1 a1 u2 a2 u3 a3 | u1 a1 u4", SAID, "3", mode=Mode.APPEND),
    Case("mode append, on an empty session", "", "u1 a1 u2", APPEND, "u1 a1 u2", SAID, mode=Mode.APPEND),
    Case("a tool's result alone", "u1 > c1", "r1", APPEND, "u1 c1 | r1", NONE, "1"),
]

# A first list brings a history along: one turn for each user message that has been answered.
ADOPTIONS = [
    Case("a history brought along", "", "s1 u1 a1 u2 a2 u3", ADOPT, "u1 a1 u2 a2 u3", BROUGHT, system="s1"),
    Case("a tool loop brought along", "", "u1 c1 r1 a1 u2", ADOPT, "u1 c1 r1 a1 u2", BROUGHT),
    Case("a greeting brought along", "", "a0 u1", ADOPT, "a0 u1", BROUGHT),
    Case("after nothing but silence", "u1 > -", "u1 a1 u2", RESEND, "[u1] a1 u2", ALL, "1"),
    Case("nothing new behind it", "", "u1 a1", APPEND, "u1 a1", FIRST),
    Case("after an adoption", "u1 a1 u2 > a2", "u1 a1 u2 a2 u3", RESEND, "[u1 a1 u2 a2] u3", ALL, "1"),
    Case("mode resend, on an empty session", "", "u1 a1 u2", ADOPT, "u1 a1 u2", BROUGHT, mode=Mode.RESEND),
]

# The list is the history, or its end, and then what is new.
RESENDS = [
    Case("all of the history", FULL, "u1 a1 u2 a2 u3 a3 u4", RESEND, "[u1 a1 u2 a2 u3 a3] u4", ALL, "3"),
    Case(
        "all of it, by a client that never did", ONE, "u1 a1 u2 a2 u3 a3 u4", RESEND, "[u1 a1 u2 a2 u3 a3] u4", ALL, "3"
    ),
    Case("all of it, and nothing new", "u1 > a1", "u1 a1", RESEND, "[u1 a1]", ALL, "1"),
    Case("a prefill that was kept", "u1 p1 > a1", "u1 p1 a1 u2", RESEND, "[u1 p1 a1] u2", ALL, "1"),
    Case("a prefill and its reply joined", "u1 p1 > a1", "u1 p1a1 u2", RESEND, "[u1 p1 a1] u2", ALL, "1"),
    Case("no system prompt in it is none", "s1 u1 > a1", "u1 a1 u2", RESEND, "[u1 a1] u2", ALL, "1"),
    Case(
        "another system prompt, and ours in it", CHAT, "s2 u1 a1 u2 a2 u9", RESEND, "[u1 a1 u2 a2] u9", ALL, "2", "s2"
    ),
    Case("a window", ONE, "u2 a2 u3 a3 u4", RESEND, "u1 a1 | [u2 a2 u3 a3] u4", END, "3"),
    Case("a window takes the prompt", "s1 u1 > a1; u2 > a2", "u2 a2 u3", RESEND, "u1 a1 | [u2 a2] u3", END, "2", "s1"),
    Case("a window of a resending client", FULL, "u2 a2 u3 a3 u4", RESEND, "[u2 a2 u3 a3] u4", INTERRUPTED, "3"),
    Case(
        "a window slides on",
        "u1 > a1; u1 a1 u2 > a2; u2 a2 u3 > a3",
        "u3 a3 u4",
        RESEND,
        "[u3 a3] u4",
        INTERRUPTED,
        "3",
    ),
    Case("a summary in the system prompt", CHAT, "s9 u2 a2 u3", RESEND, "[u2 a2] u3", INTERRUPTED, "2", "s9"),
    Case(
        "a window with a prefill joined", "u1 > a1; u2 p2 > a2", "u2 p2a2 u3", RESEND, "u1 a1 | [u2 p2 a2] u3", END, "2"
    ),
    Case("an own tool loop", "u1 > a1; u2 > c1", "u2 c1 r1", RESEND, "u1 a1 | [u2 c1] r1", END, "2"),
    Case(
        "an own tool loop, second round",
        "u1 > a1; u2 > c1; u2 c1 r1 > c2",
        "u2 c1 r1 c2 r2",
        RESEND,
        "u1 a1 | [u2 c1 r1 c2] r2",
        END,
        "3",
    ),
    Case("an own tool loop in the first turn", "u1 > c1", "u1 c1 r1", RESEND, "[u1 c1] r1", ALL, "1"),
    Case("one message after such a loop", "u1 > c1; u1 c1 r1 > a1", "u2", APPEND, "u1 c1 r1 a1 | u2", NONE, "2"),
    Case(
        "the next loop after such a loop",
        "u1 > c1; u1 c1 r1 > a1; u2 > c2",
        "u2 c2 r2",
        RESEND,
        "u1 c1 r1 a1 | [u2 c2] r2",
        END,
        "3",
    ),
    Case("a call and its result", "u1 > a1; u2 > c1", "c1 r1", RESEND, "u1 a1 u2 | [c1] r1", END, "2"),
    Case(
        "mode resend cuts what precedes a window",
        ONE,
        "u3 a3 u4",
        RESEND,
        "[u3 a3] u4",
        INTERRUPTED,
        "3",
        mode=Mode.RESEND,
    ),
]

# Replies of ours stand at their place; then something differs, or the list ends.
REWRITES = [
    Case("the last message edited", FULL, "u1 a1 u2 a2 u9", REWRITE, "[u1 a1 u2 a2] u9", DEPARTS, "2"),
    Case("an old message edited", FULL, "u1 a1 u9", REWRITE, "[u1 a1] u9", DEPARTS, "1"),
    Case("edited by a client that never resent", ONE, "u1 a1 u9", REWRITE, "[u1 a1] u9", DEPARTS, "1"),
    Case(
        "edited, and what follows kept", FULL, "u1 a1 u9 a2 u3 a3 u4", REWRITE, "[u1 a1] u9 [a2 u3 a3] u4", DEPARTS, "3"
    ),
    Case("a reply edited", FULL, "u1 a9 u2 a2 u3 a3 u4", REWRITE, "[u1] a9 [u2 a2 u3 a3] u4", DEPARTS, "3"),
    Case("the only reply edited", "u1 > a1", "u1 a9 u2", REWRITE, "[u1] a9 u2", DEPARTS, "1"),
    Case("edited among equal turns", "u a u > a", "u9 a u a u4", REWRITE, "u9 [a u a] u4", AMONG, "1"),
    Case("a turn taken out", FULL, "u1 a1 u3 a3 u4", REWRITE, "[u1 a1 u3 a3] u4", DEPARTS, "3"),
    Case(
        "an old message with another picture",
        "u1 > a1; u1 a1 u2@cat > a2",
        "u1 a1 u2@dog a2 u3",
        REWRITE,
        "[u1 a1] u2@dog [a2] u3",
        DEPARTS,
        "2",
    ),
    Case("regenerate", FULL, "u1 a1 u2 a2 u3", REWRITE, "[u1 a1 u2 a2 u3]", SHORT, "3"),
    Case("undo", FULL, "u1 a1", REWRITE, "[u1 a1]", SHORT, "1"),
    Case(
        "back to an older branch",
        "u1 > a1; u1 a1 u2 > a2; u1 a1 u3 > a3",
        "u1 a1 u2 a2 u4",
        REWRITE,
        "[u1 a1 u2 a2] u4",
        DEPARTS,
        "2",
    ),
    Case(
        "back to the reply before regenerate",
        "u1 > a1; u1 a1 u2 > a2; u1 a1 u2 > a3",
        "u1 a1 u2 a2 u4",
        REWRITE,
        "[u1 a1 u2 a2] u4",
        DEPARTS,
        "2",
    ),
    Case(
        "the branch that agrees longest",
        "u1 > a1; u1 a1 u2 > a2; u1 a1 u3 > a3; u1 a1 u4 > a4",
        "u1 a1 u2 u5",
        REWRITE,
        "[u1 a1 u2] u5",
        DEPARTS,
        "2",
    ),
    Case(
        "edited behind a cut", "u1 > a1; u1 a1 u2 > a2; u2 a2 u3 > a3", "u2 a2 u9", REWRITE, "[u2 a2] u9", DEPARTS, "3"
    ),
    Case("edited within a window", ONE, "u2 a2 u9", REWRITE, "u1 a1 | [u2 a2] u9", INSIDE, "2"),
    Case("edited within a window, resending", FULL, "u2 a2 u9", REWRITE, "[u2 a2] u9", INSIDE, "2"),
    Case("a summary and the tail", FULL, "u9 u3 a3 u4", REWRITE, "u9 [u3 a3] u4", AMONG, "3"),
    Case("a summary and half a turn", FULL, "u9 a3 u4", REWRITE, "u9 [a3] u4", AMONG, "3"),
    Case("a summary and the tail, not resending", ONE, "u9 u3 a3 u4", REWRITE, "u9 [u3 a3] u4", AMONG, "3"),
    Case("without what tools gave", "u1 > a1; u2 > c2; u2 c2 r2 > a2", "u2 a2 u3", REWRITE, "[u2 a2] u3", AMONG, "3"),
    Case("a prefill dropped", "u1 p1 > a1", "u1 a1 u2", REWRITE, "[u1 a1] u2", AMONG, "1"),
    Case("a prefill moved on", "u1 p1 > a1", "u1 a1 u2 p1", REWRITE, "[u1 a1] u2 p1", AMONG, "1"),
    Case("an instruction behind the user's message", "u1 n1 > a1", "u1 a1 u2 n1", REWRITE, "[u1 a1] u2 n1", AMONG, "1"),
    Case("several of them", "u1 n1 n2 n3 > a1", "u1 a1 u2 n1 n2 n3", REWRITE, "[u1 a1] u2 n1 n2 n3", AMONG, "1"),
    Case(
        "the instruction moves on",
        "u1 n1 > a1; u1 a1 u2 n1 > a2",
        "u1 a1 u2 a2 u3 n1",
        REWRITE,
        "[u1 a1 u2 a2] u3 n1",
        DEPARTS,
        "2",
    ),
    Case(
        "a summary without its frame",
        f"s1 u1 #f > a1; s1 u1 a1 u2 #f > a2-second-reply; s9 u9:a2-second-reply > t(sum){SUMMARY}(end)",
        f"s1 u9:{SUMMARY} u3 #f",
        REWRITE,
        f"u9:{SUMMARY} u3",
        "its own list, with a summary that was asked for beside it",
        system="s1",
    ),
    Case(
        "the first reply given anew, behind a tool loop",
        "u1 > c1; u1 c1 r1 > a1; u1 > a2",
        "u1 a2 u2",
        REWRITE,
        "[u1 a2] u2",
        DEPARTS,
        "3",
    ),
    Case(
        "the first reply given anew, and cut",
        "u1 > a1; u1 > a2-the-begi/",
        "u1 a2-the u2",
        REWRITE,
        "[u1] a2-the u2",
        DEPARTS,
        "1",
    ),
    Case(
        "the first message again, among others",
        "u1 > a1; u2 > a2; u1 > a3",
        "u1 a3 u4",
        RESEND,
        "u1 a1 u2 a2 | [u1 a3] u4",
        END,
        "3",
    ),
    Case("mode resend: nothing in common", "u1 > a1", "u9", REWRITE, "u9", SAID, mode=Mode.RESEND),
]

# Examples that each request brings, and what looks like them.
PREAMBLES = [
    Case("examples again", "e1 x1 u1 > a1", "e1 x1 u2", APPEND, "e1 x1 u1 a1 | u2", EXAMPLES, "1"),
    Case(
        "examples a third time",
        "e1 x1 u1 > a1; e1 x1 u2 > a2",
        "e1 x1 u3",
        APPEND,
        "e1 x1 u1 a1 u2 a2 | u3",
        EXAMPLES,
        "2",
    ),
    Case("examples and the whole history", "e1 x1 u1 > a1", "e1 x1 u1 a1 u2", RESEND, "[e1 x1 u1 a1] u2", ALL, "1"),
    Case("other examples", "e1 x1 u1 > a1", "e2 x2 u2", APPEND, "e1 x1 u1 a1 | e2 x2 u2", NONE, "1"),
    Case("the examples alone", "e1 x1 u1 > a1", "e1 x1", APPEND, "e1 x1 u1 a1 | e1 x1", NONE, "1"),
]

# What precedes a window was said under another prompt, but the list does not begin where its client began.
WITHIN = [
    Case("half a turn", "s2 u0 > t1; s1 u1 u5 > a1", "s1 u5 a1 u2", RESEND, "u0 t1 u1 | [u5 a1] u2", END, "2", "s1"),
]

# What goes on with a request that was said beside the chat, and who has spoken so before.
ASKED_BESIDE = [
    Case(
        "a call of an instruction's", "s1 u1 > a1; u1 a1 n9 > c9", "u1 a1 n9 c9 r9", ASIDE, "[u1 a1 n9 c9] r9", MAY, "2"
    ),
    Case(
        "the same note in the chat",
        "s1 u1 > a1; u1 a1 n9 > t9",
        "s1 u1 a1 n9 u5",
        RESEND,
        "[u1 a1] n9 u5",
        ALL,
        "1",
        "s1",
    ),
    Case(
        "a quote by other software, without the tools it had",
        "u1 > a1; u1 a1 u2 > a2-second-reply; ^b u3 #f > a3",
        "u9:a2-second-reply ^b",
        APPEND,
        "u1 a1 u2 a2-second-reply u3 a3 | u9:a2-second-reply",
        NONE,
        "3",
    ),
]

WAITS = "another prompt and other tools, while a call of the chat's waits for its result"

# A title, tags or a summary beside a chat: forwarded as sent.
ASIDES = [
    Case(
        "the call's result behind such an agent",
        "s1 u1 #main > c1; s2 u7 #f > c8; s2 u7 c8 r8 #f > a7",
        "s1 u1 c1 r1 #main",
        RESEND,
        "[u1 c1] r1",
        ALL,
        "1",
        "s1",
    ),
    Case("an agent without tools that a tool asks", "s1 u1 #main > c1", "s2 u7", ASIDE, "u7", WAITS, system="s2"),
    Case(
        "an agent that a tool asks, later on",
        "s1 u1 #main > a1;" * 9 + "s1 u2 #main > c2",
        "s2 u7 #f",
        ASIDE,
        "u7",
        WAITS,
        system="s2",
    ),
    Case(
        "a call that is not run, with other tools",
        "s1 u1 #main > c1",
        "s1 u7 #f",
        APPEND,
        "u1 c1 | u7",
        NONE,
        "1",
        "s1",
    ),
    Case("other tools and another prompt", "s1 u1 #main > a1", "s2 u7 #f", APPEND, "u1 a1 | u7", NONE, "1", "s2"),
    Case("a result under another prompt", "s1 u1 #main > c1", "s2 r1 #f", APPEND, "u1 c1 | r1", NONE, "1", "s2"),
    Case("other software while a call waits", "s1 u1 #main > c1", "s2 u7 #f ^b", APPEND, "u1 c1 | u7", NONE, "1", "s2"),
    Case("a title beside a chat", CHAT, "s2 u1", ASIDE, "u1", OTHER, system="s2"),
    Case("a title beside a chat without a prompt", FULL, "s2 u1", ASIDE, "u1", OTHER, system="s2"),
    Case("a title beside a turn in flight", CHAT, "s2 u1", ASIDE, "u1", OTHER, system="s2", flight="s1 u1 a1 u2 a2 u3"),
    Case(
        "a plan behind a plan that came first",  # smolagents, where the model calls no tool: it quotes the task alone
        "e0 > a0-do-this-first; s1 u1 a:a0-do-this-first u2 #f > a2",
        "s9 u1:u9",
        ASIDE,
        "u1:u9",
        OTHER,
        system="s9",
    ),
    Case(
        "a plan told in the first list, without tools",  # smolagents' CodeAgent
        "e0 > a0-do-this-first",
        "s1 u1 a:a0-do-this-first u2",
        ADOPT,
        "u1 a:a0-do-this-first u2",
        "what came before it was asked for this chat, and it brings a history along",
        system="s1",
    ),
    Case(
        "a summary asked for as the chat is",  # LangChain, of an agent without a prompt and without tools
        "u1-for-a-week > a1-the-first-reply; u1-for-a-week a1-the-first-reply u2 > a2",
        "u9:u1-for-a-week:a1-the-first-reply",
        ASIDE,
        "u9:u1-for-a-week:a1-the-first-reply",
        "it quotes what was asked and what was replied, from a client that resends",
    ),
    Case(
        "a summary in a tool loop",  # LangChain: no reply has said a word yet, what it quotes are results
        "s1 u1-for-a-week #f > c1-weather-there; s1 u1-for-a-week c1-weather-there r1-weather-there #f > c2",
        "u9:u1-for-a-week:r1-weather-there",
        ASIDE,
        "u9:u1-for-a-week:r1-weather-there",
        "it quotes a reply, without the chat's tools",
    ),
    Case(
        "a quote that its client escaped",
        'u1-a<b #f ~ > a1-a<b-is-"so"',
        "u9:a1-a&lt;b-is-&quot;so&quot;",
        ASIDE,
        "u9:a1-a&lt;b-is-&quot;so&quot;",
        "it quotes a reply, without the chat's tools",
    ),
    Case(
        "a quote that its client cut",
        f"u1 #f ~ > {LONG}-and-its-end",
        f"u9:{LONG}",
        ASIDE,
        f"u9:{LONG}",
        "it quotes a reply, without the chat's tools",
    ),
    Case(
        "a quote of what was said long ago",
        "u1 #f ~ > a1-the-first-reply;" + "u2 #f ~ > a2;" * 40,
        "u9:a1-the-first-reply",
        ASIDE,
        "u9:a1-the-first-reply",
        "it quotes a reply, without the chat's tools",
    ),
    Case("under the same prompt", CHAT, "s1 u9", APPEND, "u1 a1 u2 a2 | u9", NONE, "2", "s1"),
    Case("under the same prompt as developer", CHAT, "d1 u9", APPEND, "u1 a1 u2 a2 | u9", NONE, "2", "d1"),
    Case("other tools alone make none", CHAT, "s1 u9 #f", APPEND, "u1 a1 u2 a2 | u9", NONE, "2", "s1"),
    Case(
        "the chat goes on after it",
        CHAT + "; s2 u1 > t1",
        "s1 u1 a1 u2 a2 u3",
        RESEND,
        "[u1 a1 u2 a2] u3",
        ALL,
        "2",
        "s1",
    ),
    Case("a title beside the first turn", "", "s2 u1", ASIDE, "u1", BESIDE, system="s2", flight="s1 u1"),
    Case("other tools beside the first turn", "", "u1", ASIDE, "u1", BESIDE, flight="u1 #f"),
    Case("its like beside the first turn", "", "s1 u2", APPEND, "u2", FIRST, system="s1", flight="s1 u1"),
    Case(
        "beside a second try of the first turn",
        "u1 > -",
        "s2 u1",
        RESEND,
        "[u1]",
        ALL,
        "1",
        "s2",
        flight="s1 u1",
        silent=True,
    ),
]

# While a turn is in flight: what needs nothing of it goes on beside it.
FLIGHTS = [
    Case("an edit of it", "u1 > a1", "u1 a1 u9", RESEND, "[u1 a1] u9", ALL, "1", flight="u1 a1 u2"),
    Case("the same list", "u1 > a1", "u1 a1 u2", RESEND, "[u1 a1] u2", ALL, "1", flight="u1 a1 u2"),
    Case("an addition to it", "u1 > a1", "u1 a1 u2 u3", RESEND, "[u1 a1] u2 u3", ALL, "1", flight="u1 a1 u2"),
    Case(
        "its reply, before its end",
        "u1 > a1",
        "u1 a1 u2 a2 u3",
        RESEND,
        "[u1 a1] u2 a2 u3",
        ALL,
        "1",
        flight="u1 a1 u2",
        waits=True,
    ),
    Case(
        "a reply to an edit of it", "u1 > a1", "u1 a1 u9 a2 u3", RESEND, "[u1 a1] u9 a2 u3", ALL, "1", flight="u1 a1 u2"
    ),
    Case("the first turn's reply, before its end", "", "u1 a1 u2", ADOPT, "u1 a1 u2", BROUGHT, flight="u1"),
    Case(
        "a reply given anew, before its end",
        FULL,
        "u1 a1 u2 a2 u3 a9 u4",
        REWRITE,
        "[u1 a1 u2 a2 u3] a9 u4",
        DEPARTS,
        "3",
        flight="u1 a1 u2 a2 u3",
        waits=True,
    ),
    Case("what follows the tip", "u1 > a1", "u3", APPEND, "u1 a1 | u3", NONE, "1", flight="u2"),
]

# Lists that can be read in two ways: each a row of the table in docs/reconcile.md, and each row one of these.
EITHER = [
    Case("the same message again", "yes > ok", "yes", APPEND, "yes ok | yes", NONE, "1"),
    Case("the first message again", FULL, "u1", APPEND, "u1 a1 u2 a2 u3 a3 | u1", NONE, "3"),
    Case("user messages only", "u1 > a1", "u1 u2", APPEND, "u1 a1 | u1 u2", NONE, "1"),
    Case("the end or the beginning", "yes > ok; yes > ok", "yes ok yes", RESEND, "yes ok | [yes ok] yes", END, "2"),
    Case(
        "the end or the beginning, resending",
        "yes > ok; yes ok yes > ok",
        "yes ok yes",
        REWRITE,
        "[yes ok yes]",
        SHORT,
        "2",
    ),
    Case("a window from a reply on", "u1 > a1; u2 > a2", "a2 u3", RESEND, "u1 a1 u2 | [a2] u3", END, "2"),
    Case("the first reply edited", "u1 > a1", "u1 a9 u2", REWRITE, "[u1] a9 u2", DEPARTS, "1"),
    Case(
        "the first reply given anew",
        "u1 > a1; u1 > a2",
        "u1 a2 u2",
        REWRITE,
        "[u1 a2] u2",
        DEPARTS,
        "2",
    ),
    Case(
        "the first reply given anew, after a title",
        "u1 > a1-first-reply; u9:a1-first-reply > t1; u1 > a2",
        "u1 a2 u2",
        REWRITE,
        "[u1 a2] u2",
        DEPARTS,
        "3",
    ),
    Case(
        "the first reply given anew, after more was said",
        FULL + "; u1 > a4",
        "u1 a4 u5",
        REWRITE,
        "[u1 a4] u5",
        DEPARTS,
        "4",
    ),
    Case(
        "the first reply given anew, in a tool loop",
        "u1 > a1; u1 > c2",
        "u1 c2 r2",
        RESEND,
        "u1 a1 | [u1 c2] r2",
        END,
        "2",
    ),
    Case("the first message edited", "u1 > a1", "u9 a1 u2", REWRITE, "u9 [a1] u2", AMONG, "1"),
    Case("an example like a reply", "u1 > a1; u2 > a2", "e1 a2 u3", APPEND, "u1 a1 u2 a2 | e1 a2 u3", NONE, "2"),
    Case("an example like a reply, resending", "u1 > a1; u1 a1 u2 > a2", "e1 a2 u3", REWRITE, "e1 [a2] u3", AMONG, "2"),
    Case("the first list again", "e1 x1 u1 > a1", "e1 x1 u1", APPEND, "e1 x1 u1 a1 | u1", EXAMPLES, "1"),
    Case(
        "an edit before the first reply",
        "u1 a1 u2 > a2; u1 a1 u2 a2 u3 > a3",
        "u1 a1 u9",
        REWRITE,
        "[u1 a1] u9",
        "it departs from what the session adopted",
        "1.1",
    ),
    Case("an edit right after an adoption", "u1 a1 u2 > a2", "u1 a1 u9", APPEND, "u1 a1 u2 a2 | u9", EXAMPLES, "1"),
    Case("a summary alone", FULL, "u9", APPEND, "u1 a1 u2 a2 u3 a3 | u9", NONE, "3"),
    Case("another prompt, resending", CHAT, "s9 u3", ASIDE, "u3", OTHER, system="s9"),
    Case("another prompt, one message", "s1 u1 > a1", "s9 u2", APPEND, "u1 a1 | u2", NONE, "1", "s9"),
    Case("a title after the first turn", "s1 u1 > a1", "s2 u9", APPEND, "u1 a1 | u9", NONE, "1", "s2"),
    Case(
        "the chat after such a title",
        "s1 u1 > a1; s2 u9 > t1",
        "s1 u1 a1 u2",
        REWRITE,
        "[u1 a1] u2",
        DEPARTS,
        "1",
        "s1",
    ),
    Case(
        "a title that came first",
        "s2 e0 u1 > t1",
        "s1 u1 #f",
        APPEND,
        "u1",
        "what came before it was asked for this chat",
        system="s1",
    ),
    Case(
        "a title that came first, quoting",
        "s2 e0:u1-for-a-week > t1",
        "s1 u1-for-a-week #f",
        APPEND,
        "u1-for-a-week",
        "what came before it was asked for this chat",
        system="s1",
    ),
    Case(
        "the same words, with tools and a prompt",
        "u1 > a1",
        "s1 u1 #f",
        APPEND,
        "u1 a1 | u1",
        NONE,
        parent="1",
        system="s1",
    ),
    Case(
        "a plan that came first",
        "e0 > a0-do-this-first",
        "s1 u1 a:a0-do-this-first u2 #f",
        ADOPT,
        "u1 a:a0-do-this-first u2",
        "what came before it was asked for this chat, and it brings a history along",
        system="s1",
    ),
    Case(
        "a chat behind another prompt",
        "s2 u0 > t1; s1 u1 > a1",
        "s1 u1 a1 u2",
        RESEND,
        "[u1 a1] u2",
        "all of its own list; what precedes it were side requests",
        parent="2",
        system="s1",
    ),
    Case("a chat behind no prompt", "u0 > a0; u1 > a1", "u1 a1 u2", RESEND, "u0 a0 | [u1 a1] u2", END, parent="2"),
    Case(
        "an answer pasted back",
        "s1 u1 > a1-first-reply",
        "u9:a1-first-reply",
        APPEND,
        "u1 a1-first-reply | u9:a1-first-reply",
        NONE,
        parent="1",
        system="s1",
    ),
    Case(
        "an answer pasted back, a clock",
        "s_at_10:01 u1 > a1-first-reply",
        "s_at_10:02 u9:a1-first-reply",
        APPEND,
        "u1 a1-first-reply | u9:a1-first-reply",
        NONE,
        parent="1",
        system="s_at_10:02",
    ),
    Case(
        "an answer pasted back, a prompt per task",
        "s1 u1 > a1-first-reply",
        "s2 u9:a1-first-reply",
        APPEND,
        "u1 a1-first-reply | u9:a1-first-reply",
        NONE,
        parent="1",
        system="s2",
    ),
    Case(
        "an answer pasted back, without tools",
        "u1 #f > a1-first-reply",
        "u9:a1-first-reply",
        APPEND,
        "u1 a1-first-reply | u9:a1-first-reply",
        NONE,
        parent="1",
    ),
    Case(
        "a quote without tools and stream",
        "u1 #f ~ > a1-first-reply",
        "u9:a1-first-reply",
        ASIDE,
        "u9:a1-first-reply",
        "it quotes a reply, without the chat's tools",
    ),
    Case(
        "a quote of both without tools",
        "u1-hello #f > a1-first-reply",
        "u9:u1-hello:a1-first-reply",
        ASIDE,
        "u9:u1-hello:a1-first-reply",
        "it quotes a reply, without the chat's tools",
    ),
    Case(
        "a quote without the prompt, resending",
        "s1 u1 > a1-first-reply; s1 u1 a1-first-reply u2 > a2-second-reply",
        "u9:a2-second-reply",
        ASIDE,
        "u9:a2-second-reply",
        "it quotes a reply, and is asked otherwise than the chat",
    ),
    Case(
        "a quote under the same prompt, resending",
        "s1 u1 #f ~ > a1-first-reply; s1 u1 a1-first-reply u2 #f ~ > a2-second-reply",
        "s1 u9:a2-second-reply #f ~",
        APPEND,
        "u1 a1-first-reply u2 a2-second-reply | u9:a2-second-reply",
        NONE,
        parent="2",
        system="s1",
    ),
    Case(
        "a quote by other software",
        "s1 u1 #f ~ > a1-first-reply; s1 u1 a1-first-reply u2 #f ~ > a2-second-reply",
        "u9:a2-second-reply ^b",
        APPEND,
        "u1 a1-first-reply u2 a2-second-reply | u9:a2-second-reply",
        NONE,
        parent="2",
        system="s1",
    ),
    Case(
        "a quote by one that spoke so before",
        "^b u0 > a0; u1 > a1-first-reply; u1 a1-first-reply u2 > a2-second-reply",
        "u9:a2-second-reply ^b",
        APPEND,
        "u0 a0 u1 a1-first-reply u2 a2-second-reply | u9:a2-second-reply",
        NONE,
        parent="3",
    ),
    Case(
        "a quote by one that spoke under another prompt",
        "s7 ^b u0 > a0; u1 > a1-first-reply; u1 a1-first-reply u2 > a2-second-reply",
        "u9:a2-second-reply ^b",
        APPEND,
        "u0 a0 u1 a1-first-reply u2 a2-second-reply | u9:a2-second-reply",
        NONE,
        parent="3",
        system="s7",
    ),
    Case(
        "a summary kept as a user's message",
        "s1 u1 > a1; s1 u1 a1 u2 > a2-second-reply; s9 u9:a2-second-reply > t1-the-summary",
        "s1 u9:t1-the-summary u3",
        REWRITE,
        "u9:t1-the-summary u3",
        "its own list, with a summary that was asked for beside it",
        system="s1",
    ),
    Case(
        "a summary kept as a reply",
        "s1 u1 > a1; s1 u1 a1 u2 > a2-second-reply; s9 u9:a2-second-reply > t1-the-summary",
        "s1 u8 t1-the-summary u3",
        REWRITE,
        "u8 t1-the-summary u3",
        "its own list, with a summary that was asked for beside it",
        system="s1",
    ),
    Case(
        "a list compacted by its client",
        "s1 u1 > a1; s1 u1 a1 u2 > a2",
        "s1 u9 ok u3",
        REWRITE,
        "u9 ok u3",
        "a list of its own: none of it is ours",
        system="s1",
    ),
    Case(
        "a reply of another branch",
        "u1 > a1; u1 a1 u2 > a2; u1 a1 u3 > a3",
        "u9 a2 u4",
        REWRITE,
        "u9 [a2] u4",
        "replies of another branch, at their place among other messages",
        parent="2",
    ),
    Case(
        "a prefill, resending",
        "s1 u1 > a1; s1 u1 a1 u2 > a2",
        "s1 u9 p1",
        APPEND,
        "u1 a1 u2 a2 | u9 p1",
        NONE,
        parent="2",
        system="s1",
    ),
    Case(
        "the whole list under another prompt",
        "s1 u1 > a1; s1 u1 a1 u2 > a2",
        "s2 u1 a1 u2 a2 u9",
        RESEND,
        "[u1 a1 u2 a2] u9",
        ALL,
        parent="2",
        system="s2",
    ),
    Case(
        "a part of the list under another prompt",
        "s1 u1 > a1; s1 u1 a1 u2 > a2",
        "s2 u1 a1 u9",
        ASIDE,
        "[u1 a1] u9",
        "the chat's list under another prompt: it may be said beside the chat",
        parent="1",
        system="s2",
    ),
    Case(
        "the list under another prompt, with other tools",
        "s1 u1 #f #g > a1",
        "s2 u1 a1 u9 #f",
        ASIDE,
        "[u1 a1] u9",
        "the chat's list under another prompt: it may be said beside the chat",
        parent="1",
        system="s2",
    ),
    Case(
        "and it was the chat",
        "s1 u1 #f #g > a1; s2 u1 a1 u9 #f > a9",
        "s2 u1 a1 u9 a9 u10 #f",
        RESEND,
        "[u1 a1 u9 a9] u10",
        ALL,
        parent="2",
        system="s2",
    ),
    Case(
        "and the chat goes on",
        "s1 u1 #f #g > a1; s2 u1 a1 u9 #f > a9",
        "s1 u1 a1 u2 #f #g",
        RESEND,
        "[u1 a1] u2",
        ALL,
        parent="1",
        system="s1",
    ),
    Case(
        "an instruction at the end of the list",
        "s1 u1 > a1; s1 u1 a1 u2 > a2",
        "u1 a1 n9",
        ASIDE,
        "[u1 a1] n9",
        "the chat's list under another prompt: it may be said beside the chat",
        parent="1",
    ),
    Case(
        "the result of a call that was made beside",
        "s1 u1 #f #g > a1; s2 u1 a1 u9 #f > c9",
        "r9 #f",
        APPEND,
        "u1 a1 u9 c9 | r9",
        "the result of a call that was made beside the tip",
        parent="2",
        system="s2",
    ),
    Case("an agent that a tool asks", "s1 u1 #main > c1", "s2 u7 #f", ASIDE, "u7", WAITS, system="s2"),
    Case(
        "the result of a call that the tip has left",
        "u1 > a1; u2 > c2; u1 a1 u3 > a3",
        "r2",
        APPEND,
        "u1 a1 u2 c2 | r2",
        "the result of a call that was made beside the tip",
        parent="2",
    ),
    Case(
        "what another client said",
        "u1 > a1-first-reply; u1 a1-first-reply u2 > a2-second-reply; u3 > a3",
        "u1 a1-first-reply u2 a2-second-reply u4",
        RESEND,
        "[u1 a1-first-reply u2 a2-second-reply] u4",
        "all of its own list, and then what is new; what others said stays",
        parent="3",
    ),
    Case(
        "what other software said",
        "u1 > a1; ^b u2 > a2",
        "u1 a1 u3",
        RESEND,
        "[u1 a1] u3",
        "all of its own list, and then what is new; what others said stays",
        parent="2",
    ),
    Case(
        "an edit before what another client said",
        "u1 > a1-first-reply; u1 a1-first-reply u2 > a2-second-reply; u3 > a3",
        "u1 a1-first-reply u9",
        REWRITE,
        "[u1 a1-first-reply] u9",
        "it departs from the history; what others said stays",
        parent="3",
    ),
    Case(
        "another agent's reply",
        "s1 u1 > a1",
        "s2 u1 =a1",
        RESEND,
        "[u1] =a1",
        "an agent's list, that tells the others' replies",
        parent="1",
        system="s2",
    ),
    Case(
        "user messages only, a third time",
        "u1 > a1; u1 u2 > a2",
        "u1 u2 u3",
        RESEND,
        "[u1 a1 u2 a2] u3",
        "its own messages alone, a longer list each time",
        parent="2",
    ),
    Case(
        "user messages only, a fourth time",
        "u1 > a1; u1 u2 > a2; u1 u2 u3 > a3",
        "u1 u2 u3 u4",
        RESEND,
        "[u1 a1 u2 a2 u3 a3] u4",
        "its own messages alone, a longer list each time",
        parent="3",
    ),
    Case(
        "the beginning of a cut reply",
        "u1 > a1; u2 > a2-the-begi/",
        "u2 a2-the u3",
        REWRITE,
        "u1 a1 | [u2] a2-the u3",
        "the last turn again, with what came of it",
        parent="2",
    ),
    Case("the same question after silence", "u1 > -", "u1", RESEND, "[u1]", ALL, parent="1", silent=True),
    Case("more after silence", "u1 > -", "u1 u2", RESEND, "[u1] u2", ALL, parent="1", silent=True),
    Case(
        "more after a first reply that was cut",
        "u1 > a1-the-begi/",
        "u1 u2",
        REWRITE,
        "[u1] u2",
        "what was asked first, without the reply that its client has not taken",
        parent="1",
        silent=True,
    ),
    Case(
        "more after a first call that nobody answered",
        "u1 #f > c1",
        "u1 u2 #f",
        REWRITE,
        "[u1] u2",
        "what was asked first, without the reply that its client has not taken",
        parent="1",
        silent=True,
    ),
    Case("the last question after silence", "u1 > a1; u2 > -", "u2", APPEND, "u1 a1 u2 | u2", NONE, parent="2"),
    Case(
        "a title behind the whole list",
        "u1 #f ~ > a1-first-reply",
        "u1 a1-first-reply u9",
        ASIDE,
        "[u1 a1-first-reply] u9",
        "the chat's list under another prompt: it may be said beside the chat",
        parent="1",
    ),
    Case(
        "a name for the user's words",
        "u1-how-are-you-today #f ~ > a1",
        "u9:u1-how-are-you-today",
        ASIDE,
        "u9:u1-how-are-you-today",
        "it quotes the user, without the chat's tools and stream",
    ),
    Case(
        "a summary as the first prompt",
        "s1 u1 > a1-first-reply; s1 u1 a1-first-reply u2 > a2-second-reply; s9 u9:a2-second-reply > t1-the-summary",
        "s1:t1-the-summary u3",
        REWRITE,
        "u3",
        "its own list, with a summary that was asked for beside it",
        system="s1:t1-the-summary",
    ),
    Case(
        "a summary that the chat was asked for",
        "s1 u1 > a1-first-reply; s1 u1 a1-first-reply u2 > t2-the-summary",
        "s1 u9:t2-the-summary u3",
        REWRITE,
        "u9:t2-the-summary u3",
        "its own list, with a summary that was asked for beside it",
        system="s1",
    ),
    Case(
        "a script beside an agent",
        "^b u0 > a0; u1 #f ~ > a1-first-reply",
        "u9:a1-first-reply ^b",
        APPEND,
        "u0 a0 u1 a1-first-reply | u9:a1-first-reply",
        NONE,
        parent="2",
    ),
    Case(
        "a second chat",
        "s1 u1 > a1; s1 u1 a1 u2 > a2; s1 v1 > b1",
        "s1 v1 b1 v2",
        RESEND,
        "[v1 b1] v2",
        "the end of the history, and then what is new; what precedes it was another list",
        parent="3",
        system="s1",
    ),
    Case(
        "a second chat without a prompt",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1",
        "v1 b1 v2",
        RESEND,
        "[v1 b1] v2",
        "the end of the history, and then what is new; what precedes it was another list",
        parent="3",
    ),
    Case(
        "the first message edited, after more was said",
        "s1 u1 > a1; s1 u1 a1 u2 > a2; s1 u9 > a3",
        "s1 u9 a3 u4",
        RESEND,
        "[u9 a3] u4",
        "the end of the history, and then what is new; what precedes it was another list",
        parent="3",
        system="s1",
    ),
    Case(
        "a second chat in a tool loop",
        "u1 > a1; u1 a1 u2 > a2; v1 > c3",
        "v1 c3 r3",
        RESEND,
        "u1 a1 u2 a2 | [v1 c3] r3",
        "the end of the history, and then what is new",
        parent="3",
    ),
    Case(
        "a second chat whose first reply is edited",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1",
        "v1 b9 v2",
        REWRITE,
        "[v1] b9 v2",
        "it departs from the history within a window; what precedes it was another list",
        parent="3",
    ),
    Case(
        "a second chat whose first reply was stopped",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1-the-begi/",
        "v1 b1-the v2",
        REWRITE,
        "[v1] b1-the v2",
        "the last turn again, with what came of it; what precedes it was another list",
        parent="3",
    ),
    Case(
        "a second chat that goes on from an earlier first reply",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1; v1 > b2",
        "v1 b1 v2",
        REWRITE,
        "[v1 b1] v2",
        "it departs from the history within a window; what precedes it was another list",
        parent="3",
    ),
    Case(
        "a second chat, and other software",
        "^b w1 > x1; u1 > a1; u1 a1 u2 > a2; v1 > b1",
        "v1 b1 v2",
        RESEND,
        "[v1 b1] v2",
        "the end of the history, and then what is new; what precedes it was another list; what others said stays",
        parent="4",
    ),
    Case(
        "a second chat that other software begins",
        "u1 > a1; u1 a1 u2 > a2; ^b v1 > b1",
        "v1 b1 v2 ^b",
        RESEND,
        "u1 a1 u2 a2 | [v1 b1] v2",
        "the end of the history, and then what is new",
        parent="3",
    ),
    Case(
        "the last turn, now and then",
        "u1 > a1; u2 > a2; u2 a2 u3 > a3; u4 > a4",
        "u4 a4 u5",
        RESEND,
        "u1 a1 u2 a2 u3 a3 | [u4 a4] u5",
        "the end of the history, and then what is new",
        parent="4",
    ),
    Case(
        "from a result on",
        "u1 > a1; u1 a1 u2 > c2; r2 > a3",
        "r2 a3 u4",
        RESEND,
        "u1 a1 u2 c2 | [r2 a3] u4",
        "the end of the history, and then what is new",
        parent="3",
    ),
    Case(
        "back to the first chat",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1; v1 b1 v2 > b2",
        "u1 a1 u2 a2 u3",
        REWRITE,
        "[u1 a1 u2 a2] u3",
        "it departs from the history",
        parent="2",
    ),
    Case(
        "back to the first chat, after other software",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1; v1 b1 v2 > b2; ^b w1 > x1",
        "u1 a1 u2 a2 u3",
        REWRITE,
        "u1 a1 u2 a2 u3",
        "it departs from the history; what others said stays",
        parent="5",
    ),
    Case(
        "back to the first chat, behind other software",
        "^b w1 > x1; u1 > a1; u1 a1 u2 > a2; v1 > b1; v1 b1 v2 > b2; ^b w2 > x2",
        "u1 a1 u2 a2 u3",
        REWRITE,
        "u1 a1 u2 a2 u3",
        "replies of another branch, at their place among other messages; what others said stays",
        parent="6",
    ),
    Case(
        "a summary alone, that the chat was asked for",
        "u1 > a1-first-reply; u1 a1-first-reply u2 > t2-the-summary",
        "u9:t2-the-summary",
        APPEND,
        "u1 a1-first-reply u2 t2-the-summary | u9:t2-the-summary",
        "no reply of ours in it",
        parent="2",
    ),
    Case(
        "and its list goes on",
        "u1 > a1-first-reply; u1 a1-first-reply u2 > t2-the-summary; u9:t2-the-summary > a3",
        "u9:t2-the-summary a3 u4",
        RESEND,
        "[u9:t2-the-summary a3] u4",
        "the end of the history, and then what is new; what precedes it was another list",
        parent="3",
    ),
    Case(
        "back to a chat of one question",
        "u1 > a1; u1 a1 u2 > a2; v1 > b1; e1 > x1; e1 x1 e2 > x2; e3 > x3",
        "v1 b1 v2",
        REWRITE,
        "[v1 b1] v2",
        "replies of another branch, at their place among other messages",
        parent="3",
    ),
]

CASES = [*ASKED_BESIDE, *WITHIN, *APPENDS, *ADOPTIONS, *RESENDS, *REWRITES, *PREAMBLES, *ASIDES, *FLIGHTS, *EITHER]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def block_of(system: bytes | None) -> str:
    return " ".join([word(raw) for raw in elements(b"[" + system + b"]")]) if system else ""


def read(case: Case, spelt: Any = message) -> Plan:
    history = played(case.before)
    flights = in_flight(history, case.flight)
    return decide(ask(case.list, spelt), history, fingerprints, case.mode, flights, software(case.list))


@each_case
def test_how_a_list_is_read(case: Case) -> None:
    plan = read(case)
    assert (plan.decision, upstream(plan), plan.parent) == (case.decision, case.upstream, case.parent)
    assert (plan.reason, block_of(plan.system)) == (case.reason, case.system)


def test_what_most_requests_are_is_read_as_the_other_readings_would() -> None:
    usual = 0
    for case in CASES:
        history, asked = played(case.before), ask(case.list)
        client = software(case.list)[:CLIENT].ljust(CLIENT, b"\0")
        if case.mode is Mode.AUTO and not case.flight and is_one_new_message(asked, history, (), client):
            usual += 1
            assert (
                appended(asked, history, client) == _Matcher(asked, history, fingerprints, (), client, case.mode).plan()
            )
    assert usual > 10


@each_case
def test_a_copy_that_was_rewritten_on_the_way_is_read_the_same_and_ours_is_sent(case: Case) -> None:
    plan = read(case, rewritten)
    assert (plan.decision, upstream(plan), plan.parent) == (case.decision, case.upstream, case.parent)
    sent = [each.entry for each in plan.sent if each.entry]
    assert all([entry.message is plan.path[at].message for entry, at in zip(sent, held(plan), strict=True)])


def with_bare_calls(word: str) -> Any:
    made = message(word)
    return {**made, "content": None} if word[0] == "c" else made


@pytest.mark.parametrize(
    ("before", "list_", "sent"),
    [
        ("u1 > a1; u2 > c2", "u2 c2 r2", "u1 a1 | [u2 c2] r2"),
        ("u1 > a1; u2 > c2", "c2 r2", "u1 a1 u2 | [c2] r2"),
        ("u1 > c1", "u1 c1 r1", "[u1 c1] r1"),
        ("u1 > c1; u1 c1 r1 > a1", "u1 c1 r1 a1 u2", "[u1 c1 r1 a1] u2"),
        ("u1 > a1; u2 > c2", "u2 c3 r3", "u1 a1 u2 c2 | u2 - r3"),
    ],
)
def test_a_call_sent_back_without_the_words_beside_it_is_ours(before: str, list_: str, sent: str) -> None:
    assert upstream(decide(ask(list_, with_bare_calls), played(before), fingerprints)) == sent


@each_case
def test_who_resends_and_who_goes_on_beside_a_turn_in_flight(case: Case) -> None:
    plan = read(case)
    carries_history = case.decision in (RESEND, REWRITE) and "|" not in case.upstream and not case.silent
    told = bool(case.before)  # the reply of what came before its chat
    carries_history = carries_history or (case.decision is ADOPT and (case.mode is Mode.RESEND or told))
    assert plan.resends is (carries_history or (plan.side and bool(plan.pairs)))
    assert plan.alone is ((carries_history and not case.waits) or case.decision is ASIDE)


@each_case
def test_what_was_sent_and_its_reply_are_the_history(case: Case) -> None:
    history, plan = played(case.before), read(case)
    after = recorded(history, plan, ask(case.list), "a99", "99")
    sent = [sent_word(sent) for sent in plan.sent]
    kept = case.decision is not ASIDE
    if plan.spliced:
        mine = [each for each in sent if each[0] != "="]
        assert is_within([*mine, "a99"], line_of(after.path)) and line_of(after.path)[-1] == "a99"
    else:
        assert line_of(after.path) == ([*sent, "a99"] if kept else line_of(history.path))
    assert after.system == (plan.system if kept else history.system)
    new = [message for turn in after.turns[len(history.turns) :] for message in words_of(turn.asked)]
    new += [word(turn.reply) for turn in after.turns[len(history.turns) : -1] if turn.id != "99"]
    told = line_of(history.path) if plan.spliced else []
    assert sorted(new) == sorted([word for word in outside(case.upstream) if word[1:] not in told])


@pytest.mark.parametrize(
    ("before", "list_", "line"),
    [
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3", "u1 a1 u2 a2 u4", "u1 a1 u2 a2 u3 a3 u4"),
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3; u1 a1 u2 a2 u4 > a4", "u1 a1 u2 a2 u4 a4 u5", "u1 a1 u2 a2 u3 a3 u4 a4 u5"),
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3", "u1 a1 u9", "u1 a1 u3 a3 u9"),
        ("u1 > a1; u1 a1 u2 > a2; u3 > a3; u1 a1 u2 a2 u4 > a4", "u1 a1 u2 a2 u9", "u1 a1 u2 a2 u3 a3 u9"),
        ("u1 > a1; ^b u2 > a2", "u1 a1 u3", "u1 a1 u2 a2 u3"),
        ("u1 > a1; ^b u2 > a2; u1 a1 u3 > a3", "u2 a2 u4 ^b", "u1 a1 u2 a2 u3 a3 u4"),
        ("^b v1 > a1; u1 > a2; u1 a2 u2 > a3", "u1 a2 u2 a3 u3", "v1 a1 u1 a2 u2 a3 u3"),
        (
            "u1 > a1; v1 ^b > a2; u1 a1 u2 > a3; v1 a2 v2 ^b > a4; u1 a1 u2 a3 u3 > a5",
            "v1 a2 v2 a4 v3 ^b",
            "u1 a1 v1 a2 u2 a3 v2 a4 u3 a5 v3",
        ),
        ("s1 u1 > a1; s2 u1 =a1 > a2; s1 u1 a1 =a2 > a3", "s2 u1 =a1 a2 =a3", "u1 a1 a2 a3"),
    ],
)
def test_what_one_client_said_another_does_not_take_back(before: str, list_: str, line: str) -> None:
    history = played(before)
    plan = decide(ask(list_), history, fingerprints, client=software(list_))
    after = recorded(history, plan, ask(list_), "a99", "99")
    assert line_of(after.path) == [*line.split(), "a99"]
    own = words_of(ask(list_).messages)
    assert [sent_word(each) for each in plan.sent][-len(own) :] == own


def outside(upstream: str) -> list[str]:
    """What of a row's upstream is new."""
    return re.sub(r"^.*\||\[.*?\]", "", upstream).split()


@each_case
def test_a_whole_line_is_sent_as_it_is_and_then_the_tail(case: Case) -> None:
    plan = read(case)
    if plan.whole:
        line = [*line_of(plan.path), *words_of(plan.tail)]
        assert line == [sent_word(sent) for sent in plan.sent]


@pytest.mark.parametrize(
    ("words", "turns"),
    [
        ("", [""]),
        ("u1", ["u1"]),
        ("u1 a1 u2", ["u1 a1", "u2"]),
        ("u1 c1 r1 a1 u2 u3 a3", ["u1 c1 r1 a1", "u2 u3 a3"]),
        ("a0 u1", ["a0", "u1"]),
        ("u1 a1 n1 u2", ["u1 a1 n1 u2"]),
    ],
)
def test_a_list_as_turns(words: str, turns: list[str]) -> None:
    assert [" ".join(words_of(turn)) for turn in as_turns(ask(words).messages)] == turns


# The page


def rows() -> list[list[str]]:
    """The rows of the table of lists that can be read in two ways."""
    table = DOC.read_text().split("## Lists that can be read in two ways")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [[cell.replace("\\|", "|") for cell in row] for row in cells[1:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def test_the_page_and_the_cases_name_the_same_lists() -> None:
    assert [row[0] for row in rows()] == [case.name for case in EITHER]


@pytest.mark.parametrize("case", EITHER, ids=[case.name for case in EITHER])
def test_the_page_says_how_a_list_is_read(case: Case) -> None:
    _, after, list_, reading, why, resend = next(row for row in rows() if row[0] == case.name)
    assert codes(after) == [case.before]
    assert codes(list_) == [case.list]
    assert codes(reading) == [case.decision, case.upstream]
    assert why
    plan = decide(ask(case.list), played(case.before), fingerprints, Mode.RESEND, client=software(case.list))
    assert codes(resend) == [plan.decision, upstream(plan)]


@pytest.mark.parametrize("case", EITHER, ids=[case.name for case in EITHER])
def test_with_mode_append_every_such_list_is_new(case: Case) -> None:
    plan = decide(ask(case.list), played(case.before), fingerprints, Mode.APPEND)
    assert (plan.decision, plan.asked) == (APPEND, ask(case.list).messages)


@each_case
def test_a_turn_tried_again_is_read_as_the_first_try_was(case: Case) -> None:
    """Whatever stands in the session now: the same list goes upstream, and the turn will stand beside the first."""
    asked, history = ask(case.list), played(case.before, case.mode)
    plan = decide(asked, history, fingerprints, case.mode, in_flight(history, case.flight), software(case.list))
    if plan.decision is ASIDE:
        return
    history = recorded(history, plan, asked, "a99", "99")
    first = history.last
    history = recorded(history, decide(ask("u98"), history, fingerprints, Mode.APPEND), ask("u98"), "a98", "98")
    assert first
    again = retried(history, first, asked)
    assert again.decision is Decision.RETRY
    assert [sent_word(sent) for sent in again.sent] == [sent_word(sent) for sent in plan.sent]
    assert (again.system or b"", again.resends) == (plan.system or b"", plan.resends)
    grown = recorded(history, again, asked, "a97", "97")
    assert line_of(grown.path)[:-1] == line_of(grown.path_of(first.id))[:-1]


@pytest.mark.parametrize(
    ("then", "quick"),
    [
        ("u1 a1 u2 a2 u3", True),
        ("u1 a1 u2 a2", True),
        ("u1 a1 u2 a2 u3 n3", True),
        ("u1 a1 u2 a9 u3", False),
        ("u1 a1 u2 u3", False),
        ("u1 a1 u2", False),
        ("u9 a1 u2 a2 u3", False),
    ],
)
@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.RESEND, Mode.APPEND])
@pytest.mark.parametrize("flight", ["", "u1 a1 u2 a2 u7"])
def test_a_list_that_begins_as_the_latest_did_is_read_as_any_other(
    then: str, quick: bool, mode: Mode, flight: str
) -> None:
    history = played("u1 > a1; u1 a1 u2 > a2")
    known = wire.seen_in(ask("u1 a1 u2"), 3, bytes(CLIENT))
    again = wire.read(ask(then).body, known)
    flights = in_flight(history, flight)
    plan, plain = [decide(each, history, fingerprints, mode, flights) for each in (again, ask(then))]
    assert (plan.decision, plan.reason, plan.parent) == (plain.decision, plain.reason, plain.parent)
    assert (plan.asked, plan.layout, plan.resends, plan.alone) == (
        plain.asked,
        plain.layout,
        plain.resends,
        plain.alone,
    )
    assert (len(plan.messages) < again.count) is (quick and mode is not Mode.APPEND and not flight)
    form = compose.rendering_of("echo", "h", "m")
    (ours, injected), (theirs, plainly) = [
        compose.compose(one, read, history, form) for one, read in ((again, plan), (ask(then), plain))
    ]
    assert (b"".join(ours), injected) == (b"".join(theirs), plainly)
