"""Lists, for each upstream, which members of earlier replies it takes back and what it refuses.

A profile is found by its name or by the upstream's host. The functions read names, hosts and error bodies; messages are
changed in `reply_form`, `client_form` and `repair`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from proxy.core.json_bytes import Malformed, loads


@dataclass(frozen=True)
class Profile:
    """An upstream's habits. The defaults are those of a server that takes much and gives no reasoning.

    `hosts` are host names or domains, in lower case; a domain covers what stands below it.
    """

    name: str
    hosts: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()  # members that go back beside role, content and tool_calls, named as they came
    content_parts: bool = False  # a content list goes back as the list; else as its text
    call_extras: bool = True  # unknown members of a tool call go back (Gemini's signatures)
    signed: bool = False  # reasoning goes back only beside its details, Claude's details only with a signature
    one_system: bool = False  # a second leading system message is refused: they are merged
    alternate: bool = False  # user after user is refused: they are merged
    bridge: bool = False  # user after tool is refused: an assistant message stands between
    join_prefill: bool = False  # assistant after assistant is refused: a continued prefill is joined
    call_id: str | None = None  # the pattern that a whole tool call ID must match on input; None: any
    asked_last: bool = False  # the last message must be a user's or a result
    parses: bool = False  # arguments of a call that are no JSON are refused
    developer: bool = False  # the role is known; else it is refused by name
    # What content is beside calls where it says nothing: as it came, a text (null is refused), or null ("" is refused).
    beside_calls: Literal["kept", "text", "null"] = "kept"


# What OpenAI's own schema of an assistant message has beside role, content and tool_calls.
_SPOKEN = frozenset(("name", "function_call", "refusal", "audio"))
_TEXT = frozenset(("reasoning_content",))
_NAMED = frozenset(("reasoning",))
_EITHER = _TEXT | _NAMED  # the name depends on the version; what the server does not know it ignores
_DETAILED = frozenset(("reasoning", "reasoning_details"))
_REASONED = _TEXT | _DETAILED | {"thinking_blocks"}

_SHORT_ID = r"[a-zA-Z0-9]{9}"
_FORTY = r"(?s:.{1,40})"

_ALL = (
    # An upstream that nobody named: the reasoning that came goes back. `thinking_blocks` is LiteLLM's, and
    # Claude behind it refuses tool results without them.
    Profile("echo", keep=_SPOKEN | _REASONED | {"extra_content", "images"}, content_parts=True, developer=True),
    Profile("openai", ("api.openai.com",), _SPOKEN, call_extras=False, call_id=_FORTY, developer=True),
    Profile(
        "azure",
        ("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com"),
        _SPOKEN,
        call_extras=False,
        call_id=_FORTY,
        developer=True,
    ),
    Profile(
        "openrouter",
        ("openrouter.ai",),
        _SPOKEN | _DETAILED | {"annotations", "images"},
        signed=True,
        parses=True,
        developer=True,
    ),
    Profile("vercel", ("ai-gateway.vercel.sh",), _DETAILED | {"images"}, parses=True, beside_calls="null"),
    Profile("minimax", ("minimax.io", "minimaxi.com", "minimax.chat"), _DETAILED),
    Profile("deepseek", ("api.deepseek.com",), _TEXT),
    # The first R1 refuses reasoning in the history and wants turns to alternate; its host serves newer models.
    Profile("deepseek-r1", alternate=True, join_prefill=True),
    Profile("moonshot", ("moonshot.ai", "moonshot.cn", "kimi.com"), _TEXT),
    Profile("zai", ("z.ai", "bigmodel.cn"), _TEXT),
    Profile("xai", ("x.ai",), _TEXT),
    Profile("avian", ("avian.io",), _TEXT),
    # The templates of local models (Qwen, Gemma, Mistral) raise on a second system message and on turns that do
    # not alternate. Which template runs is not to be seen from here, so the strictest counts.
    Profile("llamacpp", keep=_EITHER, one_system=True, alternate=True, join_prefill=True),
    Profile("sglang", keep=_TEXT, one_system=True, alternate=True, join_prefill=True),
    Profile("vllm", keep=_EITHER, one_system=True, alternate=True, join_prefill=True),
    Profile("ollama", ("ollama.com",), _EITHER, developer=True, beside_calls="text"),
    Profile("crusoe", ("crusoe.ai", "crusoecloud.com"), _NAMED),
    Profile("cerebras", ("api.cerebras.ai",), _NAMED, call_extras=False),
    # `reasoning` is taken back for gpt-oss and refused for models that do not reason: nothing is safe for both.
    Profile("groq", ("api.groq.com",), call_extras=False),
    Profile(
        "mistral",
        ("mistral.ai",),
        content_parts=True,
        call_extras=False,
        one_system=True,
        alternate=True,
        bridge=True,
        join_prefill=True,
        call_id=_SHORT_ID,
        asked_last=True,
        beside_calls="text",
    ),
    Profile("gemini", ("googleapis.com",), frozenset(("extra_content",)), parses=True),
    Profile(
        "databricks",
        ("databricks.com", "azuredatabricks.net"),
        content_parts=True,
        parses=True,
        beside_calls="null",
    ),
    Profile(
        "perplexity",
        ("perplexity.ai",),
        call_extras=False,
        one_system=True,
        alternate=True,
        join_prefill=True,
        asked_last=True,
    ),
    Profile("cloudflare", ("api.cloudflare.com",), beside_calls="text"),
    Profile("together", ("together.xyz", "together.ai")),
    Profile("dashscope", ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com")),
    Profile("watsonx", ("ml.cloud.ibm.com",)),
)
PROFILES = {profile.name: profile for profile in _ALL}

# Every member of an assistant message that may be left out where it is refused. Not a call: its result would
# be left without it. Not `name`: too many errors name something by that word.
OPTIONAL = frozenset[str]().union(*[profile.keep for profile in _ALL]) - {"name", "function_call"}

# What an upstream may refuse that is no member: content that is null, or no text, beside calls.
NULL: Final = "content:null"
EMPTY: Final = "content:empty"
CONTENTS: Final = {NULL: re.compile(rb'"content"\s*:\s*null'), EMPTY: re.compile(rb'"content"\s*:\s*""')}


def choose(setting: str, host: str) -> Profile:
    """The profile of an upstream: the one named, or with "auto" the one its host belongs to, else "echo".

    Raises KeyError where there is none of that name.
    """
    if setting != "auto":
        return PROFILES[setting]
    host = host.lower().rstrip(".")
    return next((profile for profile in _ALL if _covers(profile, host)), PROFILES["echo"])


def _covers(profile: Profile, host: str) -> bool:
    return any(f".{host}".endswith(f".{name}") for name in profile.hosts)


_FAMILY = re.compile(r"gpt-oss|gpt|claude|gemini|grok|deepseek|kimi|glm|qwen|minimax|mistral|llama")
_LETTERS = re.compile(r"[a-z]+")


def family(model: str | None) -> str:
    """The family of models within which a signature holds, in lower case; empty for no model.

    The family named first in the last part of a path ("anthropic/claude-haiku-4.5" is "claude", and so is
    "us.anthropic.claude-sonnet-4"), else the letters it begins with ("o3-mini" is "o").
    """
    last = (model or "").lower().rpartition("/")[2]
    found = _FAMILY.search(last) or _LETTERS.search(last)
    return found.group() if found else last


# Ollama's Go says <nil>, templates say NoneType.
_REFUSES = {
    NULL: re.compile(r"\bcontent\b.*(?:\b(?:null|nil|None|NoneType)\b|must be a string|a valid string)", re.I | re.S),
    EMPTY: re.compile(r"\bcontent\b.*(?:non-empty|not be empty|is empty|must not be blank)", re.I | re.S),
}

# How an upstream says that it does not know a member, and how it says that it misses one: DeepSeek and
# Moonshot name reasoning_content because they want it back.
_OBJECTS = re.compile(
    r"unsupported|not support|unknown|unexpected|unrecogni[sz]ed|\binvalid\b|forbidden|not permitted|not allowed"
    r"|not accept|not valid|additional propert|extra (?:input|field|propert)|cannot find field|must not|should not",
    re.IGNORECASE,
)
_MISSES = re.compile(
    r"missing|required|must (?:be|also be) (?:passed|sent|provided|included|present|returned)|passed back"
    r"|cannot be disabled",
    re.IGNORECASE,
)


_ANYTHING = r"(?<!\w)"
# That a model takes no images says nothing of the member of that name.
_BEFORE = {"images": r"""(?:["'.`]|\d |\bassistant )"""}


def refused(status: int, body: bytes, sent: Collection[str]) -> str | None:
    """The optional member, among those `sent`, that an error says the upstream does not take, or the kind of content;
    None where it says nothing of the sort. Of several the longest name: `reasoning` is part of what people call the
    others."""
    if status not in (400, 422):
        return None
    said = list(statements(body))
    objections = [text for text in said if _OBJECTS.search(text) and not _MISSES.search(text)]
    for name in sorted(OPTIONAL.intersection(sent), key=lambda name: (-len(name), name)):
        # Not the member of a parameter: `reasoning.effort` is the request's, `reasoning_details.0` the message's.
        word = re.compile(rf"{_BEFORE.get(name, _ANYTHING)}{name}(?!\w|\.[a-z])")
        if any(word.search(text) for text in objections):
            return name
    return next((name for name in CONTENTS if name in sent and any(map(_REFUSES[name].search, said))), None)


def statements(body: bytes) -> Iterator[str]:
    """What an error says, one text per object in it. Upstreams nest objects in lists, in `message`, and as JSON
    in strings (OpenRouter's `metadata.raw`); some send plain text."""
    try:
        values = [loads(body)]
    except Malformed:
        values = [body.decode(errors="replace")]
    while values:
        value = values.pop()
        if isinstance(value, dict | list):
            inner = list(value.values()) if isinstance(value, dict) else value
            # The path to a member comes in pieces (Mistral's `loc`).
            yield " ".join([text for each in inner for text in _texts(each)])
            values += [each for each in inner if isinstance(each, dict | list)]
            values += [within for each in inner if (within := _within(each)) is not None]
        elif isinstance(value, str):
            yield value


def _texts(value: Any) -> list[str]:
    """The text of a value that stands in an object: a string of its own, or the strings of a list."""
    if isinstance(value, list):
        return [each for each in value if isinstance(each, str)]
    return [value] if isinstance(value, str) else []


def _within(value: Any) -> Any:
    """The object or list that a string holds as JSON; None for any other value."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return None
    try:
        return loads(value.encode(errors="replace"))
    except Malformed:
        return None
