"""Recognises side requests: a title, tags, follow-ups, a summary, a plan, a memory agent.

Pure. The evidence is a request's tools, stream and system prompt, and what it quotes; never its wording. A changed or
missing prompt alone proves nothing of a client that sends new messages only: it may send its prompt once, or with a
clock in it. docs/reconcile.md lists the rules and their cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from proxy.core.history import History
from proxy.core.json_bytes import elements
from proxy.core.matching.alignment import MessageReader
from proxy.core.matching.prompts import OWN_WORDS, QUOTE, is_alike, is_framed, is_told, parts, quoted_in
from proxy.core.matching.speakers import is_of_another
from proxy.core.model import CLIENT, FLAGS, STREAM, TOOLS, Ask, Message, Turn, has_tools
from proxy.core.plan import Flight

NEAR = 64  # turns among which the latest of a client's is looked for
RECENT = 8  # replies, and messages of the user's, that a quote is looked for among in any case
WORK = 1 << 24  # characters searched for quotes, where there are more: of all the history as long as that is cheap


class SideRequestCheck:
    """Checks one request against a session and the turns in flight. `client`: the fingerprint of its software."""

    def __init__(
        self, ask: Ask, history: History, dialect: MessageReader, client: bytes, flights: Sequence[Flight] = ()
    ) -> None:
        self._ask, self._history, self._dialect, self._client = ask, history, dialect, client
        self._lists = [flight for flight in flights if flight.carries_history]  # of clients that resend
        self._carriers = history.carriers.union([each.client[:CLIENT] for each in self._lists])

    # Is this one?

    def reason(self, resends: bool) -> str | None:
        """Why a list without an assistant's message is a side request; None: it is none. `resends`: the latest
        turn, or one in flight, is of a client that resends."""
        last, carriers = self._history.last, self._carriers
        if not self._ask.count and self._quote:
            return "it says nothing new, and its prompt quotes a reply"
        if last and self._has_other_tools and self.is_unknown and self._leaves_calls_waiting(last):
            return "another prompt and other tools, while a call of the chat's waits for its result"
        if last is None or not (carriers or resends or self.lacks_tools):
            return None  # as most
        if carriers and self._is_a_known_speaker:
            return None
        if self._client in carriers and self._is_asked_otherwise and self._quote:
            return "it quotes a reply, and is asked otherwise than the chat"
        if resends and self._client in carriers and self._quotes_both:
            return "it quotes what was asked and what was replied, from a client that resends"
        shaped = self.lacks_tools and not self.is_of_another(last)
        if shaped and self._quote and (self._is_not_streamed or self._quotes_both):
            return "it quotes a reply, without the chat's tools"
        if self.lacks_tools and self._is_not_streamed and quoted_in(self._said_by("user"), self._texts):
            return "it quotes the user, without the chat's tools and stream"
        if resends and self.is_unknown and not self.is_of_another(last):
            return "another system prompt than the session's, and no reply of ours"
        return None

    def _leaves_calls_waiting(self, last: Turn) -> bool:
        """Whether the latest turn, of the same software, made calls, and no result is here: a tool asks for itself."""
        own = last.rendered if not self.is_of_another(last) else None
        made = self._dialect.made("assistant", own.raw) if own else ()
        results = [self._dialect.answered(one.role, one.raw) for one in self._ask.messages]
        return len(made) > 0 and all([each is None for each in results])

    @property
    def _is_asked_otherwise(self) -> bool:
        """Without the chat's tools, its stream, or its system prompt."""
        gone = self._ask.system is None and self._history.system is not None
        return self.lacks_tools or self._is_not_streamed or gone or self.is_unknown

    @property
    def has_another_shape(self) -> bool:
        """Whether it has other tools than the latest turn, or no stream where that had one."""
        return self._has_other_tools or self._is_not_streamed

    @property
    def differs_twice(self) -> bool:
        """Whether two things tell it from the chat at once: its tools, its stream, a system prompt that is gone."""
        gone = self._ask.system is None and self._history.system is not None
        return self._has_other_tools + self._is_not_streamed + gone > 1

    @property
    def _has_other_tools(self) -> bool:
        last = self._latest
        return last is not None and (len(self._ask.tools) if self.has_tools else 0) != last.traits >> FLAGS

    @property
    def _is_not_streamed(self) -> bool:
        last = self._latest
        return last is not None and bool(last.traits & STREAM) and not self._ask.stream

    @cached_property
    def _latest(self) -> Turn | None:
        """The latest turn of the chat that the same software asked for: how others ask tells nothing of it."""
        last, recent = self._history.last, reversed(self._history.turns[-NEAR:])
        if last is None or not self.is_of_another(last):
            return last
        return next((turn for turn in recent if not (turn.is_side_request or self.is_of_another(turn))), None)

    @property
    def has_tools(self) -> bool:
        return has_tools(self._ask.tools)

    @cached_property
    def is_unknown(self) -> bool:
        """Whether it has a system prompt that no turn of the session's branch was asked under."""
        return self.prompt != "" and not any([is_alike(self.prompt, known) for known in self._prompts])

    @cached_property
    def prompt(self) -> str:
        """The text of its first system message."""
        return self._first(self._ask.system)

    @property
    def lacks_tools(self) -> bool:
        """Whether the latest turn was asked for with tools, and this one is not."""
        last = self._latest
        return last is not None and bool(last.traits & TOOLS) and not self.has_tools

    def is_of_another(self, turn: Turn) -> bool:
        """Whether other software sent a turn. Of turns that an earlier version kept nobody knows."""
        return is_of_another(turn, self._client)

    def is_under(self, system: bytes | None) -> bool:
        """Whether its system prompt is the one of that block."""
        return is_alike(self.prompt, self._first(system))

    # Was another one?

    def heads(self, turns: Sequence[Turn]) -> bool:
        """Whether what the session holds so far was asked for this chat: side requests that came first."""
        return bool(turns) and all([self._led_here(turn.asked, turn.system, turn, turn.client) for turn in turns])

    def led_to_by(self, flight: Flight) -> bool:
        """Whether a turn in flight is a side request for this chat."""
        if has_tools(flight.tools):
            return False
        return self._led_here(flight.asked, flight.system, None, flight.client)

    def _led_here(self, asked: Sequence[Message], system: bytes | None, turn: Turn | None, client: bytes) -> bool:
        """A request without tools, that asks about the words this chat begins with, or whose reply this chat frames."""
        if not asked:
            return self._is_told_of(system)
        if (turn and turn.traits & TOOLS) or client[:CLIENT] != self._client:
            return False
        if self.prompt == "" or self.is_under(system) or any([one.role == "assistant" for one in asked]):
            return False
        replies = [self._dialect.text(one.raw) for one in self._ask.messages if one.role == "assistant"]
        said = self._dialect.text(turn.rendered.raw) if turn and turn.rendered else ""
        if said in replies:
            return False  # it is in the list: a turn of this chat
        if quoted_in([said], replies):
            return True
        if not self.has_tools:
            return False
        told = [self._dialect.text(one.raw) for one in asked if one.role == "user"]
        begins = [self._dialect.text(one.raw) for one in self._ask.messages if one.role == "user"]
        own = [*begins, *[part for text in begins for part in parts(text)]]
        among = [text for text in own if text and len(told) > 1 and text in told]
        return bool(among) or any([is_framed(text, message) for text in own for message in told])

    def _is_told_of(self, system: bytes | None) -> bool:
        """Whether a system block, that was all of a request, quotes the words this chat begins with."""
        own = [self._dialect.text(one.raw) for one in self._ask.messages if one.role == "user"]
        prompts = [self._dialect.text(raw) for raw in _blocks(system)]
        return not self.is_under(system) and quoted_in(own, prompts) is not None

    # Compaction

    @property
    def is_compacted(self) -> bool:
        """Whether the list holds the reply of a side request, told by anyone: a summary in the place of messages."""
        if self.is_summed_up:
            return True
        last = self._latest
        if last is None or not self._history.side_requests or bool(last.traits & TOOLS) is not self.has_tools:
            return False
        resent = self._client in self._carriers
        if not resent and not any([message.role == "assistant" for message in self._ask.messages]):
            return False
        replies = [text for text in self._side_replies if len(text) >= QUOTE]
        told = any([text in replies for text in self._texts]) or quoted_in(replies, self._texts) is not None
        told = told or any([is_told(reply, text) for reply in replies for text in self._texts])
        return told and not self.is_unknown

    @property
    def is_begun_anew(self) -> bool:
        """Whether the list begins with messages that tell the latest reply, by a client that resends: a summary that
        was asked for in the chat itself, in the place of what it sums up."""
        last, messages = self._history.last, self._ask.messages
        if last is None or last.rendered is None or not last.resends or self.is_of_another(last) or len(messages) < 2:
            return False
        if self._client not in self._carriers or self.is_unknown or not self._is_asked_alike:
            return False
        said, texts = self._dialect.text(last.rendered.raw), [self._dialect.text(one.raw) for one in messages]
        told = [len(said) >= QUOTE and (said == text or is_told(said, text)) for text in texts]
        first = self._history.path[0].message
        fingerprint = self._dialect.fingerprint
        return any(told[:-1]) or (told[-1] and fingerprint(first.raw) == fingerprint(messages[0].raw))

    @cached_property
    def is_summed_up(self) -> bool:
        """Whether its system block holds the reply of a side request, in the place of messages, where the chat had
        another block or none: asked as the chat is, with nothing else of ours in it, by a client that resends."""
        history = self._history
        if not (history.side_requests and self.is_unknown and self._client in self._carriers and self._is_asked_alike):
            return False
        prompts = [self._dialect.text(raw) for raw in self._system]
        held = [text for text in self._side_replies if len(text) >= QUOTE and any([text in one for one in prompts])]
        rest = self._texts
        for text in held:
            rest = [one.replace(text, "") for one in rest]
        return bool(held) and quoted_in(self._said_by("assistant"), rest) is None

    @property
    def _is_asked_alike(self) -> bool:
        """With tools or without and streamed or not, as the chat is."""
        last = self._latest
        return last is not None and bool(last.traits & TOOLS) is self.has_tools and not self._is_not_streamed

    # What it is held against

    @cached_property
    def _texts(self) -> list[str]:
        """What the list says, message by message, its system messages first."""
        messages = [*self._system, *[message.raw for message in self._ask.messages]]
        return [self._dialect.text(raw) for raw in messages]

    @property
    def _system(self) -> list[bytes]:
        return _blocks(self._ask.system)

    @cached_property
    def _quote(self) -> str | None:
        """The message that quotes a reply or the result of a tool, of the line or of a side request."""
        return quoted_in([*self._said_by("assistant", "tool"), *self._side_replies], self._texts)

    @property
    def _quotes_both(self) -> bool:
        """Whether the message that quotes a reply quotes the user's words, too."""
        return self._quote is not None and quoted_in(self._said_by("user"), [self._quote], OWN_WORDS) is not None

    @cached_property
    def _side_replies(self) -> list[str]:
        recent = [turn.rendered for turn in self._history.side_requests[-RECENT:]]
        return [self._dialect.text(reply.raw) for reply in recent if reply]

    def _said_by(self, *roles: str) -> list[str]:
        """What those said in the line, the latest first; of replies ours alone, a client's examples are none. A summary
        quotes what is oldest: all of the line is looked at, unless what may quote it is very long."""
        most = max(RECENT, WORK // (1 + sum(map(len, self._texts))))
        said = [entry for entry in self._history.path if entry.ours or entry.message.role != "assistant"]
        path = [entry for entry in said if entry.message.role in roles]
        return [self._dialect.text(entry.message.raw) for entry in path[: -most - 1 : -1]]

    @cached_property
    def _prompts(self) -> set[str]:
        """The system prompts that the turns of the session's branch were asked under."""
        turns = [turn for turn in self._history.ancestors(self._history.tip) if turn.system]
        # A side request that a later list followed may have been said beside the chat.
        if any([turn.is_side_request for turn in turns]):
            ours = {entry.turn.id for entry in self._history.path if entry.ours}
            turns = [turn for turn in turns if not turn.is_side_request or turn.id in ours]
        return {self._first(turn.system) for turn in turns}

    @property
    def _is_a_known_speaker(self) -> bool:
        """Whether a client that sends new messages has asked so before: under this prompt, with tools or without. The
        first turn of a client that resends looks the same; its message is where that client's list begins."""
        history = self._history
        if any([each.resends and not each.spliced for each in self._lists]):
            return False
        clients = [each.client for each in self._lists]
        clients += [turn.client for turn in history.turns if turn.carries_history]
        heads = {client[CLIENT:] for client in clients}
        for turn in history.ancestors(history.tip):
            if turn.carries_history and turn.resends and not turn.is_spliced:
                return False  # what precedes it was shown in its list
            if turn.resends or self.is_of_another(turn) or not turn.asked or len(turn.client) > CLIENT:
                continue
            if bool(turn.traits & TOOLS) is not self.has_tools:
                continue
            own = self._first(turn.system) if turn.system else ""  # what it sent itself, not what it was given
            if is_alike(own, self.prompt) and self._dialect.fingerprint(turn.asked[0].raw)[:CLIENT] not in heads:
                return True
        return False

    def _first(self, block: bytes | None) -> str:
        """The text of a system block's first message."""
        blocks = _blocks(block)
        return self._dialect.text(blocks[0]) if blocks else ""


def _blocks(block: bytes | None) -> list[bytes]:
    return elements(b"[" + block + b"]") if block else []
