"""Repairs a list of messages so that the upstream accepts it, whatever was recorded, interrupted or left out.

Every tool call gets its result, every result its call, and where the upstream insists, the roles alternate. Stored
messages do not change, only the list that is sent. Knows no store and no request, only an upstream's rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from proxy.core.json_bytes import UNDECODED, Malformed, dumps, loads
from proxy.dialects.chat.tool_groups import RESULTS, Group, calls, named, renamed

# Mistral refuses `user` after `tool`, and an assistant message that says nothing.
BRIDGE: Final = b'{"role":"assistant","content":"OK."}'


LOOSE: Final = 128  # parts that a list may have before they are joined


# For the role and the ID of a result: the message that made its call, where one was begun and left out of its list.
Torn = Callable[[str, str], bytes | None]


class ListRules(Protocol):
    """What an upstream insists on beside the pairing of calls and results."""

    @property
    def alternate(self) -> bool:
        """Refuses `user` after `user`."""

    @property
    def bridge(self) -> bool:
        """Refuses `user` after `tool`."""

    @property
    def join_prefill(self) -> bool:
        """Refuses `assistant` after `assistant`."""

    @property
    def call_id(self) -> str | None:
        """The regular expression that the id of a call must fullmatch; None: any will do."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """Where a stand-in was sent: the number of its part and its id; `older` under the same name."""

    index: int
    id: str
    older: _Gap | None


class Repair:
    """The messages of a list as they go upstream: `add` each in order, then `finish`.

    Kept with a session for its history; a request adds its own to a `fork`.
    Left out are a call's second result and, of what is stored, results of no call and replies
    that say nothing. A result that comes late replaces what stood in for it.
    """

    def __init__(self, rules: ListRules) -> None:
        self._rules = rules
        # Runs of messages, joined by commas. A stand-in is a part of its own: it may be replaced.
        self._parts: list[bytes] = []
        self._run = 0  # the part at which the newest run begins
        self._count = 0  # messages in the parts
        self._tail: list[bytes] = []  # the newest messages, of one role: more may join them
        self._role = ""
        self._open: Group | None = None  # only while there is no tail
        self._gaps: dict[tuple[str, str], _Gap] = {}
        self._nameless: list[tuple[str, str]] = []  # gaps of calls that came without an id
        self._made: set[tuple[str, str]] = set()  # every call: role of its result, id
        self._ends_with_summary = False  # what was added last is a summary

    @property
    def ends_with_reply(self) -> bool:
        """Whether the last message is an assistant's, without calls."""
        return bool(self._tail) and self._role == "assistant"

    @property
    def count(self) -> int:
        """Messages in `finish`."""
        return self._count + len(self._joined_tail()) + (self._open.size if self._open else 0)

    def fork(self) -> Repair:
        """A copy to go on with. Costs the open things and the set of ids (1000: some 10 us), and now and
        then a join: joining each time would copy the whole history once more."""
        if len(self._parts) - self._run > LOOSE:
            self._join()
        twin = Repair(self._rules)
        twin._parts, twin._run, twin._count = self._parts[:], self._run, self._count
        twin._tail, twin._role, twin._ends_with_summary = self._tail[:], self._role, self._ends_with_summary
        twin._open = self._open.copy() if self._open else None
        twin._gaps, twin._made, twin._nameless = self._gaps.copy(), self._made.copy(), self._nameless[:]
        return twin

    def add(self, role: str, raw: bytes, *, stored: bool = False, torn: Torn | None = None) -> None:
        """The next message in its sent form. What a client carries itself (not `stored`) is the
        upstream's to judge: results of no call and empty replies stay. The call of a result may have been `torn`: it is
        made good in front of it."""
        if role in RESULTS:
            if not self._answers(role, raw, torn) and not stored:
                self._pass_on(raw)
        elif not (stored and role == "assistant" and _silent(raw)):
            if self._open:
                self._close(self._open)
            self._say(role, raw)

    def summarized(self, raw: bytes) -> None:
        """A summary, in the place of what precedes the list: a user's message, for no list may begin with another's,
        but one that is never followed by a user's nor joined with it. Whether an upstream minds is not always known."""
        self._say("user", raw)
        self._ends_with_summary = True

    def orphan(self, messages: Iterable[tuple[str, bytes]], torn: Torn | None = None) -> str | None:
        """The id that the first result of no call names, were these (role, raw) added; else None."""
        twin = self.fork()
        for role, raw in messages:
            if role not in RESULTS:
                twin.add(role, raw)
            elif not twin._answers(role, raw, torn):
                return named(role, raw)
        return None

    def pieces(self) -> list[bytes]:
        """All messages, some of them joined by commas, every call answered. Changes nothing: more may be added."""
        pieces = [*self._parts, *self._joined_tail()]
        if self._open:
            group, missing = self._open.copy().close()
            pieces += [*group, *[stand_in.raw for stand_in in missing]]
        return pieces

    def finish(self) -> bytes:
        """All messages joined by commas; see `pieces`."""
        return b",".join(self.pieces())

    def _answers(self, role: str, raw: bytes, torn: Torn | None) -> bool:
        """Puts a result behind its call, if there is one or one can be made good."""
        id = named(role, raw)
        if self._put_result(role, id, raw):
            return True
        call = torn(role, id) if torn else None
        if call is None:
            return False
        self.add("assistant", call)
        return self._put_result(role, id, raw)

    def _put_result(self, role: str, id: str, raw: bytes) -> bool:
        """Puts a result where it belongs, if a call of this list asked for it: to the open group,
        else to the newest closed one that lacks it, else to an open call without an id."""
        if self._open and self._open.answer(role, id, raw):
            return True
        if self._fill((role, id), raw):
            return True
        if self._open and self._open.adopt(role, id, raw):
            if id:
                self._made.add((role, id))
            return True
        if (role, id) in self._made:
            return True
        late = next((key for key in self._nameless if key[0] == role), None)
        if late is None:
            return False
        self._made.add((role, id))
        return self._fill(late, raw)

    def _fill(self, key: tuple[str, str], raw: bytes) -> bool:
        """Puts a late result in the place of what stands in for it."""
        gap = self._gaps.pop(key, None)
        if gap is None:
            return False
        if gap.older:
            self._gaps[key] = gap.older
        if key in self._nameless:
            self._nameless.remove(key)
        self._parts[gap.index] = renamed(key[0], raw, gap.id)
        return True

    def _pass_on(self, raw: bytes) -> None:
        if self._open:
            self._open.pass_on(raw)
        else:
            self._emit(self._joined_tail())
            self._emit([raw])
            self._tail = []

    def _say(self, role: str, raw: bytes) -> None:
        if not self._tail and self._count and role == "user" and self._rules.bridge:  # a result is last
            self._emit([BRIDGE])
        if self._ends_with_summary and role == "user":
            self._emit([*self._tail, BRIDGE])
            self._tail = []
        self._ends_with_summary = False
        if self._tail and not (role == self._role and self._joins(role)):
            self._emit(self._joined_tail())
            self._tail = []
        self._tail.append(raw)
        self._role = role
        if role == "assistant" and (made := calls(raw)):
            *before, call = self._joined_tail()
            self._emit(before)
            self._tail = []
            self._open = Group(call, made, self._count, self._rules.call_id)
            self._made.update([(one.role, one.said) for one in made if one.said])

    def _joins(self, role: str) -> bool:
        return (role == "user" and self._rules.alternate) or (role == "assistant" and self._rules.join_prefill)

    def _joined_tail(self) -> list[bytes]:
        # A reply goes on where its prefill stops; two messages of a user are two.
        return self._tail if len(self._tail) < 2 else _joined(self._tail, "" if self._role == "assistant" else "\n\n")

    def _close(self, group: Group) -> None:
        pieces, missing = group.close()
        self._open = None
        self._emit(pieces)
        if not missing:
            return
        self._join()
        for one in missing:
            key = one.role, one.name
            self._made.add(key)
            self._gaps[key] = _Gap(len(self._parts), one.id, self._gaps.get(key))
            if one.nameless:
                self._nameless.append(key)
            self._emit([one.raw])
        self._run = len(self._parts)

    def _emit(self, pieces: list[bytes]) -> None:
        self._parts += pieces
        self._count += len(pieces)

    def _join(self) -> None:
        if len(self._parts) - self._run > 1:
            self._parts[self._run :] = [b",".join(self._parts[self._run :])]


class _Said(msgspec.Struct):
    content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None
    audio: Any = None
    images: Any = None


_SAID = msgspec.json.Decoder(_Said)


def _silent(raw: bytes) -> bool:
    """Whether an assistant message says nothing; one that cannot be read says something."""
    try:
        said = _SAID.decode(raw)
    except UNDECODED:
        try:
            said = msgspec.convert(loads(raw), _Said)
        except (Malformed, *UNDECODED):
            return False
    return not (said.content or said.tool_calls or said.function_call or said.refusal or said.audio or said.images)


def _joined(raws: list[bytes], separator: str) -> list[bytes]:
    """The messages as one; as they are where one of them cannot be joined."""
    try:
        messages = [loads(raw) for raw in raws]
        return [dumps(_one(messages, separator))]
    except Malformed:
        return raws


def _one(messages: list[Any], separator: str) -> dict[str, Any]:
    """Later members count. `prefix` (Mistral, DeepSeek) is said of a last message only."""
    whole: dict[str, Any] = {}
    for message in messages:
        if not isinstance(message, dict):
            raise Malformed("not an object")
        whole.pop("prefix", None)
        whole.update(message)
    whole["content"] = _content([message.get("content") for message in messages], separator)
    return whole


def _content(contents: list[Any], separator: str) -> str | list[Any]:
    said = [content for content in contents if content not in (None, "", [])]
    if all(isinstance(content, str) for content in said):
        return separator.join(said)
    parts: list[Any] = []
    for content in said:
        if not isinstance(content, str | list):
            raise Malformed("content that is neither text nor parts")
        parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return parts
