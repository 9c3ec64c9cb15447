"""The pages in docs/reference say what the code says: every code, key, metric, header, path and field, and no other."""

from __future__ import annotations

import inspect
import re
import sqlite3
import types
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from proxy import errors
from proxy.config import model as config
from proxy.config import value_types
from proxy.context import request_log
from proxy.core import headers
from proxy.core.exchange import Verdict
from proxy.downstream import cors
from proxy.observe.counters import Counters
from proxy.observe.prometheus import Metrics, Present
from proxy.server import sessions_api
from proxy.stores.base import StoreStats
from proxy.stores.sqlite.migration import steps
from proxy.turns import chat_request

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"


def rows(page: str, heading: str | None = None) -> list[list[str]]:
    """The rows of a page's tables, or of those below one heading, whose first cell is code."""
    text = (PAGES / page).read_text()
    if heading:
        text = re.split(r"^#+ .*$", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    found = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]
    return [row for row in cells if row[0].startswith("`")]


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# Errors


def faults(kind: type[errors.ProxyError] = errors.ProxyError) -> Iterator[type[errors.ProxyError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from faults(each)


def retry(kind: type[errors.ProxyError]) -> str:
    told = [f"`Retry-After: {kind('').delay}`"] if kind.retry_after is not None else []
    told += [f"`x-should-retry: {str(kind.should_retry).lower()}`"] if kind.should_retry is not None else []
    return ", ".join(told)


def test_every_error_code_stands_there_with_its_status_and_no_other() -> None:
    page = {(ticked(code)[0], int(status), tells) for code, status, tells, *_ in rows("errors.md")}
    assert page == {(kind.code, kind.status, retry(kind)) for kind in faults()}


def test_every_error_has_a_cause_and_a_remedy() -> None:
    for _, _, _, cause, remedy in rows("errors.md"):
        assert cause.endswith(".") and remedy.endswith("."), (cause, remedy)


# Configuration

WORDS = {
    "Affinity": "mapping",
    "BaseUrl": "URL",
    "Count": "count",
    "Duration": "duration",
    "File": "path",
    "KeyHash": "key hash",
    "Listen": "address",
    "Model": "model",
    "Mounts": "mounts",
    "Name": "name",
    "Origins": "origins",
    "Pem": "PEM file",
    "Profile": "profile",
    "Secret": "secret",
    "Size": "size",
    "Tenant": "tenant rule",
    "Text": "text",
}


def keys(section: type[config.Section], at: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key below a section with the words for its type and its default."""
    hints = get_type_hints(section, include_extras=True)
    for name, field in section.model_fields.items():
        key, inner = f"{at}{name}", _section(field.annotation)
        if inner:
            yield from keys(inner, f"{key}[]." if get_origin(field.annotation) is tuple else f"{key}.")
        else:
            yield key, _kind(hints[name]), "required" if field.is_required() else f"`{_written(field.default)}`"


def _section(annotation: Any) -> type[config.Section] | None:
    inner = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return inner if isinstance(inner, type) and issubclass(inner, config.Section) else None


def _kind(hint: Any) -> str:
    for name, word in WORDS.items():
        if hint == getattr(value_types, name):
            return word
    if hint is bool:
        return "`true` or `false`"
    if get_origin(hint) is Literal:
        *some, last = [f"`{each}`" for each in get_args(hint)]
        return f"{', '.join(some)} or {last}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join([_kind(each) if each is not types.NoneType else "`null`" for each in get_args(hint)])
    if hasattr(hint, "__metadata__"):
        return _kind(hint.__origin__)
    assert get_origin(hint) is tuple, hint
    word = _kind(get_args(hint)[0])
    return f"list of {word}{'es' if word.endswith('h') else 's'}"


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, dict) else "{}"


def test_every_key_of_the_configuration_stands_there_with_type_and_default() -> None:
    page = {(ticked(key)[0], kind, default) for key, kind, default, *_ in rows("configuration.md", "Keys")}
    known = set(keys(config.Config))
    assert page == known, f"missing: {sorted(known - page)}; too much: {sorted(page - known)}"


def test_every_type_of_value_is_told_in_the_words_of_the_error_message() -> None:
    page = {ticked(word)[0]: told for word, told in rows("configuration.md", "Types of values")}
    assert page.keys() == set(WORDS.values())
    for name, word in WORDS.items():
        said = [
            each.say
            for each in getattr(getattr(value_types, name), "__metadata__", ())
            if isinstance(each, value_types.Shape)
        ]
        assert not said or page[word] == said[0].replace("|", "\\|"), name


# Metrics


def test_every_metric_stands_there_with_kind_and_labels_and_no_other() -> None:
    metrics = Metrics(Counters())
    metrics.render(Present(0, 0, 0, False, StoreStats()))
    known = set()
    for family in metrics.collect():
        name = family.name.removeprefix("session_proxy_") + ("_total" if family.type == "counter" else "")
        known.add((name, family.type, tuple(getattr(family, "_labelnames", ()))))
    page = {(ticked(name)[0], kind, tuple(ticked(labels))) for name, kind, labels, _ in rows("metrics.md", "Names")}
    assert page == known


# Headers


def named(heading: str) -> set[str]:
    return {name.lower() for row in rows("headers.md", heading) for name in ticked(row[0])}


def test_every_header_that_a_request_may_carry_stands_there_and_no_other() -> None:
    read = {"x-request-id", "x-stainless-retry-count", "user-agent", "content-encoding", "expect", "origin"}
    ids = {name.lower() for name in config.Sessions().headers}
    assert named("In a request") == headers.OURS | set(headers.CREDENTIALS) | ids | read
    sources = "".join([file.read_text() for file in (ROOT / "proxy").rglob("*.py")]).lower()
    assert [name for name in named("In a request") if name not in sources] == []


def test_every_header_that_an_answer_carries_stands_there_and_no_other() -> None:
    exposed = set(cors._EXPOSED.split(", ")) | {name for name, _ in chat_request.of_turn("", "", "", 0, 0)}
    exposed |= {request_log.NAME, request_log.CHOSEN, chat_request.not_recorded("")[0]}
    own = {"retry-after", "x-should-retry", "cache-control", "www-authenticate"}
    browser = {name for name in named("In an answer") if name.startswith("access-control-")}
    assert named("In an answer") == exposed | own | browser
    assert browser == {
        name.lower() for name in re.findall(r'"(Access-Control-(?!Request)[\w-]+)"', inspect.getsource(cors))
    }


def test_no_x_session_header_of_the_code_is_missing() -> None:
    spelled = {
        name
        for file in (ROOT / "proxy").rglob("*.py")
        for name in re.findall(r"\"(x-session-[a-z-]+)\"", file.read_text())
    }
    assert len(spelled) > 10 and spelled <= named("In a request") | named("In an answer")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("x-session-mode", chat_request._MODES),
        ("x-session-on-busy", chat_request._BUSY),
        ("x-session-on-disconnect", chat_request._POLICIES),
        ("x-session-must-exist", chat_request._YES),
        ("x-session-dry-run", chat_request._YES),
        ("x-session-store", chat_request._NO),
    ],
)
def test_every_value_of_a_header_stands_there_and_no_other(header: str, words: Any) -> None:
    (row,) = [row for row in rows("headers.md", "In a request") if f"`{header}`" in row[0]]
    assert set(ticked(row[1])) == set(words)


# Endpoints


def test_every_path_of_the_session_api_stands_there_and_no_other() -> None:
    page = {tuple(ticked(row[0])[0].split(" ")) for row in rows("endpoints.md", "Sessions")}
    known = {
        (method, f"/sessions/ID/{path}".rstrip("/")) for path, each in sessions_api._ROUTES.items() for method in each
    }
    assert {(method, path.partition("?")[0]) for method, path in page} == known


# The log


def test_every_field_of_a_request_s_line_stands_there_and_no_other() -> None:
    told = inspect.getsource(request_log._fields)
    fields = set(re.findall(r'fields\["(\w+)"\]', told)) | set(re.findall(r'"(\w+)":', told))
    page = [name for row in rows("log.md", "Fields of a request") for name in ticked(row[0])]
    assert set(page) == fields | {"time", "level", "logger"} and len(page) == len(set(page))


def test_every_outcome_of_a_turn_stands_there_and_no_other() -> None:
    assert {ticked(row[0])[0] for row in rows("log.md", "Outcomes of a turn")} == {
        *[each.value for each in Verdict],
        "unkept",
    }


# Privacy


def test_every_column_of_the_database_stands_on_the_privacy_page() -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        for step in steps():
            database.executescript(step)
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        known = {name: [row[1] for row in database.execute(f"PRAGMA table_info({name})")] for name in tables}
    page = {ticked(row[0])[0]: ticked(row[1]) for row in rows("../privacy.md", "What is stored where") if len(row) == 2}
    assert page == known
