"""The configuration: what a file may say, and what is said when it is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import model as config
from proxy.config.workable import too_small
from proxy.errors import ConfigError
from tests.support.configuration import (
    HASH,
    SECRET,
    SHIPPED,
    load,
    problems,
    upstream,
)

# Defaults, the shipped files, the schema


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", "{}", "\ufeff{}"])
def test_an_empty_file_is_all_defaults(written: Path, text: str) -> None:
    assert load(written, text) == config.Config()


def test_the_shipped_file_says_the_defaults_of_the_code() -> None:
    assert config.load(SHIPPED / "session-proxy.yaml", {}) == config.Config()


def test_the_shipped_file_names_every_key() -> None:
    def keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: keys(item) for key, item in value.items()}
        return [keys(item) for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else None

    said = yaml.safe_load((SHIPPED / "session-proxy.yaml").read_text())
    assert keys(said) == keys(config.Config().model_dump())


def test_the_shipped_file_takes_upstream_and_key_from_the_environment() -> None:
    environ = {"UPSTREAM_BASE_URL": "http://127.0.0.1:9999/v1/", "UPSTREAM_API_KEY": SECRET}
    first = config.load(SHIPPED / "session-proxy.yaml", environ).upstreams[0]
    assert first.base_url == "http://127.0.0.1:9999/v1"
    assert first.api_key is not None and first.api_key.get_secret_value() == SECRET


def test_the_minimal_file_says_the_defaults_of_the_code() -> None:
    assert config.load(SHIPPED / "minimal.yaml", {}) == config.Config()


def test_the_shipped_schema_is_current() -> None:
    assert json.loads((SHIPPED / "session-proxy.schema.json").read_text()) == config.schema()


@pytest.mark.parametrize("name", ["session-proxy.yaml", "minimal.yaml"])
def test_editors_find_the_schema(name: str) -> None:
    first = (SHIPPED / name).read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=session-proxy.schema.json"


def test_the_schema_takes_its_own_defaults_and_variables() -> None:
    made = config.schema()
    rules = [rule for part in made["$defs"].values() for rule in part["properties"].values()]
    texts = [rule for rule in rules if "pattern" in rule]
    assert len(texts) > 10
    for rule in texts:
        assert re.search(rule["pattern"], "${NAME:-x}")
        assert re.search(rule["pattern"], rule.get("default", "${X}"))
    level = made["$defs"]["Log"]["properties"]["level"]
    assert level["anyOf"] == [
        {"enum": ["debug", "info", "warning", "error"], "type": "string"},
        {"type": "string", "pattern": r"\$\{"},
    ]


# What is allowed, but hardly meant


@pytest.mark.parametrize("end", ["/chat/completions", "/Chat/Completions/", "/completions", "/responses", "/messages"])
def test_a_base_url_that_ends_in_an_endpoint_is_doubted_at_its_place(written: Path, end: str) -> None:
    urls = ["https://a.example/v1", f"https://b.example/v1{end}"]
    mounts = [{"mount": f"/{n}", "base_url": url} for n, url in enumerate(urls)]
    written.write_text(yaml.safe_dump({"upstreams": mounts}))
    loaded, doubts = config.examine(written, {})
    assert loaded == config.load(written, {})
    [doubt] = doubts
    assert re.match(rf"{written}:4:3: warning: upstreams\.1\.base_url: ends in {end.rstrip('/')}, ", doubt)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/chat", "/v1/completions-of-mine", "/openai/deployments/d"])
def test_other_base_urls_are_not_doubted(written: Path, end: str) -> None:
    written.write_text(upstream(base_url=f"https://completions.example{end}"))
    assert config.examine(written, {})[1] == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("upstreams: [{api_key: k}]\nhistory: {overflow: summarize}", []),
        ("history: {overflow: trim, max_messages: 1, summary: {max_tokens: 9000}}", []),
        (
            "history: {overflow: summarize}",
            ["1:11: warning: history.overflow: summarize: no upstream has an api_key, so sessions are trimmed"],
        ),
        (
            "upstreams: [{mount: /a, api_key: k}, {mount: /b}]\nhistory: {overflow: summarize}",
            ["1:38: warning: upstreams.1: has no api_key, so its sessions are trimmed without a summary"],
        ),
        (
            "upstreams: [{api_key: k}]\nhistory: {overflow: summarize, max_tokens: 800, summary: {max_tokens: 101}}",
            ["2:59: warning: history.summary.max_tokens: a summary gets at most one part in 8 of", "write at most 100"],
        ),
    ],
)
def test_summaries_that_will_not_do_what_they_say_are_doubted(written: Path, text: str, wanted: list[str]) -> None:
    written.write_text(text)
    told = "\n".join(config.examine(written, {})[1])
    assert all(each in told for each in wanted)
    assert bool(told) is bool(wanted)


@given(st.integers(1, 1500), st.integers(1, 4000), st.sampled_from([3, 200, 9000]))
def test_the_least_limit_that_is_named_is_the_least(tokens: int, most: int, words: int) -> None:
    prompt = "x" * words
    told = [why for _, why in too_small(tokens, None, None, prompt, most)]
    if told:
        least = int(re.findall(r"at least (\d+)", told[0])[0])
        assert tokens < least
        assert list(too_small(least, None, None, prompt, most)) == []
        assert list(too_small(max(tokens, least - 10), None, None, prompt, most))


@given(st.integers(1, 20_000), st.sampled_from([3, 200, 9000]))
def test_the_least_bytes_that_are_named_are_enough(size: int, words: int) -> None:
    if told := [why for _, why in too_small(None, None, size, "x" * words, 1024)]:
        least = int(re.findall(r"at least (\d+)B", told[0])[0])
        assert size < least
        assert list(too_small(None, None, least, "x" * words, 1024)) == []


# Values


@given(
    st.integers(1, 10**9 - 1),
    st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]),
)
def test_a_duration_is_its_number_times_its_unit(number: int, unit: tuple[str, float]) -> None:
    made = config.Shutdown.model_validate({"drain": f"{number}{unit[0]}"})
    assert made.drain == pytest.approx(number * unit[1])


@given(st.integers(1, 10**12 - 1), st.sampled_from([("B", 1), ("KB", 10**3), ("MB", 10**6), ("GB", 10**9)]))
def test_a_decimal_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert config.Limits.model_validate({"cache": f"{number}{unit[0]}"}).cache == number * unit[1]


@given(st.integers(1, 10**12 - 1), st.sampled_from([("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)]))
def test_a_binary_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert config.Limits.model_validate({"cache": f"{number}{unit[0]}"}).cache == number * unit[1]


@given(st.text(alphabet="0123456789.-+emshdKMGiB ", max_size=12))
def test_any_text_is_a_positive_duration_and_size_or_is_refused(text: str) -> None:
    for model, key in ((config.Shutdown, "drain"), (config.Limits, "cache")):
        try:
            made = getattr(model.model_validate({key: text}), key)
        except ValueError:
            continue
        assert 0 < made < float("inf")


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:8484", ("127.0.0.1", 8484)),
        ("localhost:0", ("localhost", 0)),
        ("proxy.example.org:65535", ("proxy.example.org", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("unix:/run/proxy.sock", "/run/proxy.sock"),
    ],
)
def test_a_listener_has_an_address(written: Path, listen: str, address: object) -> None:
    made = load(written, f'listen: "{listen}"')
    assert made.listen == listen
    assert config.address(made.listen) == address


def test_an_address_from_the_command_line_is_refused_with_the_same_words() -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        config.address("8484")


def test_one_mount_needs_no_list(written: Path) -> None:
    assert load(written, upstream(mount="/v1")).upstreams[0].mount == ("/v1",)


def test_a_mount_may_be_the_root_or_resemble_our_own_paths(written: Path) -> None:
    mounts = ["/", "/sessions-of-mine", "/v1/sessions"]
    assert load(written, upstream(mount=mounts)).upstreams[0].mount == tuple(mounts)


@pytest.mark.parametrize("affinity", [{}, {"header": "x-affinity"}, {"body": "prompt_cache_key"}])
def test_affinity_is_one_place_or_none(written: Path, affinity: dict[str, str]) -> None:
    assert load(written, upstream(affinity=affinity)).upstreams[0].affinity == affinity


def test_key_hashes_are_kept_bare_and_in_lower_case(written: Path) -> None:
    text = json.dumps({"clients": [{"name": "kitchen", "key_hashes": ["sha256:" + HASH.upper(), "0" * 64]}]})
    assert load(written, text).clients[0].key_hashes == (HASH, "0" * 64)


@pytest.mark.parametrize(("said", "origins"), [('"*"', ("*",)), ("[https://a.example]", ("https://a.example",))])
def test_origins_are_a_list_or_a_star(written: Path, said: str, origins: tuple[str, ...]) -> None:
    assert load(written, f"cors: {{allow_origins: {said}}}").cors.allow_origins == origins


def test_words_of_yaml_are_values_and_quoted_ones_are_text(written: Path) -> None:
    made = load(written, "upstreams: [{forward: yes}]\nsessions: {queue_limit: 3}\nstore: {path: 'yes'}")
    assert made.upstreams[0].forward is True
    assert made.sessions.queue_limit == 3
    assert made.store.path == "yes"


def test_an_alias_repeats_a_value(written: Path) -> None:
    made = load(written, "limits: {body_timeout: &short 5s, write_timeout: *short}")
    assert made.limits.write_timeout == 5


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.Config().listen = "127.0.0.1:1"


# Mistakes

MISTAKES = [
    ("lisen: 1", "1:1: lisen: unknown key 'lisen'; did you mean 'listen'?"),
    ("limits: {cash: 1B}", "1:10: limits.cash: unknown key 'cash'; did you mean 'cache'?"),
    (
        "upstreams: [{baseURL: x}]",
        "1:14: upstreams.0.baseURL: unknown key 'baseURL'; did you mean 'base_url'?",
    ),
    (
        "upstreams: [{affinity: {haeder: x}}]",
        "1:25: upstreams.0.affinity.haeder: unknown key 'haeder'; did you mean 'header'?",
    ),
    ("tenant: {heder: x-user}", "1:10: tenant.heder: unknown key 'heder'; did you mean 'header'?"),
    ("store: {qqq: 1}", "1:9: store.qqq: unknown key 'qqq'; write one of path"),
    ("? [a]\n: 1", "1:3: ?: unknown key '?'; write one of listen,"),
    ("listen: 8484", "1:1: listen: must be HOST:PORT"),
    ("listen: 127.0.0.1:65536", "1:1: listen: must be HOST:PORT"),
    ("listen: 127.0.0.256:80", "1:1: listen: must be HOST:PORT"),
    ("listen: '[::zz]:80'", "1:1: listen: must be HOST:PORT"),
    ("listen: '[1:2]:80'", "1:1: listen: must be HOST:PORT"),
    ("listen: unix:relative", "1:1: listen: must be HOST:PORT"),
    ("listen: ~", "1:1: listen: must be HOST:PORT"),
    ("- a", "1:1: must be a mapping of keys and values"),
    ("just text", "1:1: must be a mapping of keys and values"),
    ("sessions:", "1:1: sessions: must be a mapping of keys and values"),
    ("upstreams: []", "1:1: upstreams: has too few or too many entries; write one"),
    ("upstreams: {}", "1:1: upstreams: must be a list"),
    ("upstreams: [{mount: []}]", "1:14: upstreams.0.mount: has too few or too many entries; write one"),
    ("upstreams: [{mount: v1}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{mount: [/ok, /v1/]}]", "1:27: upstreams.0.mount.1: must be a path such as /v1"),
    ("upstreams: [{mount: /sessions}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{mount: /sessions/a}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{mount: /healthz}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{mount: /readyz}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{mount: /a/../b}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{mount: //a}]", "1:14: upstreams.0.mount: must be a path such as /v1"),
    ("upstreams: [{base_url: ftp://a.example}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{base_url: 'http://'}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{base_url: 'http://h:99999'}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{base_url: 'http://[1:2]/'}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{base_url: 'http://h/?q=1'}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{base_url: 'http://h/#f'}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{base_url: 'http://u:p@h/'}]", "1:14: upstreams.0.base_url: must be an http or https URL"),
    ("upstreams: [{api_key: ''}]", "1:14: upstreams.0.api_key: must be the key alone"),
    ("upstreams: [{api_key: Bearer x}]", "1:14: upstreams.0.api_key: must be the key alone"),
    ("upstreams: [{forward: maybe}]", "1:14: upstreams.0.forward: must be true or false"),
    (
        "upstreams: [{affinity: {header: a, body: b}}]",
        "1:14: upstreams.0.affinity: has too few or too many entries; write one",
    ),
    ("upstreams: [{affinity: x}]", "1:14: upstreams.0.affinity: must be a mapping, such as {header: x-user}"),
    (
        "upstreams: [{affinity: {header: a b}}]",
        "1:25: upstreams.0.affinity.header: must be a name without spaces",
    ),
    (
        "upstreams: [{mount: /v1}, {}]",
        "1:27: upstreams.1: mount is the same as at upstreams.0.mount on line 1; each must be unique",
    ),
    (
        "upstreams: [{mount: [/a, /a]}]",
        "1:26: upstreams.0.mount.1: mount is the same as at upstreams.0.mount.0 on line 1",
    ),
    ("shutdown: {drain: 30}", "1:12: shutdown.drain: must be a duration above zero with its unit"),
    ("shutdown: {drain: 0s}", "1:12: shutdown.drain: must be a duration above zero with its unit"),
    ("shutdown: {drain: -1s}", "1:12: shutdown.drain: must be a duration above zero with its unit"),
    ("shutdown: {drain: true}", "1:12: shutdown.drain: must be a duration above zero with its unit"),
    ("limits: {cache: 64}", "1:10: limits.cache: must be a whole number above zero with its unit"),
    ("limits: {cache: 0MiB}", "1:10: limits.cache: must be a whole number above zero with its unit"),
    ("sessions: {queue_limit: true}", "1:12: sessions.queue_limit: must be a whole number"),
    ("sessions: {queue_limit: 1.5}", "1:12: sessions.queue_limit: must be a whole number"),
    ("sessions: {queue_limit: 0}", "1:12: sessions.queue_limit: must be at least 1"),
    ("sessions: {headers: []}", "1:12: sessions.headers: has too few or too many entries; write one"),
    ("sessions: {headers: x-session-id}", "1:12: sessions.headers: must be a list"),
    (
        "sessions: {mode: merge}",
        "1:12: sessions.mode: must be 'auto', 'append' or 'resend'",
    ),
    (
        "sessions: {on_busy: wait}",
        "1:12: sessions.on_busy: must be 'queue', 'reject' or 'interrupt'",
    ),
    (
        "sessions: {on_disconnect: stop}",
        "1:12: sessions.on_disconnect: must be 'finish' or 'cancel'",
    ),
    (
        "history: {max_tokens: 0}",
        "1:11: history.max_tokens: must be at least 1",
    ),
    ("history: {max_tokens: -1}", "1:11: history.max_tokens: must be at least 1"),
    ("history: {max_tokens: yes}", "1:11: history.max_tokens: must be a whole number, such as 16"),
    ("history: {max_messages: 0}", "1:11: history.max_messages: must be at least 1"),
    ("history: {max_messages: 2.5}", "1:11: history.max_messages: must be a whole number, such as 16"),
    ("history: {max_bytes: 0B}", "1:11: history.max_bytes: must be a whole number above zero with its unit"),
    ("history: {max_bytes: -1MiB}", "1:11: history.max_bytes: must be a whole number above zero with its unit"),
    ("history:\n  image_turns: 0", "2:3: history.image_turns: must be at least 1"),
    ("history: {overflow: fail}", "1:11: history.overflow: must be 'trim', 'error' or 'summarize'"),
    ("history: {summary: {max_tokens: 0}}", "1:21: history.summary.max_tokens: must be at least 1"),
    ("history: {summary: {timeout: 0s}}", "1:21: history.summary.timeout: must be a duration above zero"),
    ("history: {summary: {heading: ' '}}", "1:21: history.summary.heading: must be a text that is not blank"),
    (
        "history: {overflow: summarize, max_tokens: 150}",
        "1:32: history.max_tokens: cannot hold a summary, the prompt that asks for it and a message; write at least",
    ),
    (
        "history:\n  overflow: summarize\n  max_tokens: 4000\n  summary: {prompt: '" + "Be brief. " * 1600 + "'}",
        "3:3: history.max_tokens: cannot hold a summary, the prompt that asks for it and a message; write at least",
    ),
    (
        "history: {max_messages: 2, overflow: summarize}",
        "1:11: history.max_messages: cannot hold a summary and a message; write at least 3, or set overflow to trim",
    ),
    (
        "history: {max_bytes: 1KiB, overflow: summarize}",
        "1:11: history.max_bytes: cannot hold a summary, the prompt that asks for it and a message; write at least",
    ),
    ("history: {summary: {prompt: ' '}}", "1:21: history.summary.prompt: must be a text that is not blank"),
    ("history: {summary: {model: 'a b'}}", "1:21: history.summary.model: must be the name of a model"),
    ("history: {summary: {modell: m}}", "1:21: history.summary.modell: unknown key 'modell'; did you mean 'model'?"),
    ("admin: {listen: 127.0.0.1:1}", "1:9: admin.listen: needs a token; write admin.token as well"),
    (
        "admin: {listen: 127.0.0.1:8484, token: t}",
        "1:9: admin.listen: is the same address as listen; choose another one",
    ),
    ("admin: {listen: here, token: t}", "1:9: admin.listen: must be HOST:PORT"),
    ("admin: {token: 'a b'}", "1:9: admin.token: must be the key alone"),
    (
        "upstreams: [{profile: glm}]",
        "1:14: upstreams.0.profile: must be one of auto, avian, azure",
    ),
    ("log: {format: xml}", "1:7: log.format: must be 'auto', 'console', 'logfmt' or 'json'"),
    ("log: {level: loud}", "1:7: log.level: must be 'debug', 'info', 'warning' or 'error'"),
    ("tenant: everybody", "1:1: tenant: must be 'credential' or 'one'"),
    ("tenant: {}", "1:1: tenant: has too few or too many entries; write one"),
    ("clients: [{name: a}]", "1:11: clients.0: the key 'key_hashes' is missing; write it here"),
    (
        "clients: [{name: a, key_hashes: [abc]}]",
        "1:34: clients.0.key_hashes.0: must be 64 hexadecimal digits",
    ),
    (
        "clients: [{name: a b, key_hashes: [" + HASH + "]}]",
        "1:12: clients.0.name: must be a name without spaces",
    ),
    ("cors: {allow_origins: [nowhere]}", "1:24: cors.allow_origins.0: must be '*' or a list of origins"),
    ("store: {path: ''}", "1:9: store.path: must be the path of a file"),
    (
        "log: {level: info}\nlog: {}",
        "2:1: log: duplicate key 'log'; the first is on line 1; keep one of them",
    ),
    ("listen: !env LISTEN", "1:1: listen: has a YAML tag or is nested too deeply; write a plain value"),
    ("listen: [1", "2:1: cannot be read: "),
    ("listen: a: b", "1:10: cannot be read: mapping values are not allowed"),
    ("listen: 1\n---\nlisten: 2", "2:1: cannot be read: but found another document"),
    ("listen: '\0'", "1:1: cannot be read: not YAML in UTF-8"),
]


@pytest.mark.parametrize(("text", "problem"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_place(written: Path, text: str, problem: str) -> None:
    first = problems(written, text)
    assert first[0].startswith(problem)
    assert len(first) == 1 or "heder" in text


def test_a_list_that_contains_itself_is_refused(written: Path) -> None:
    assert "nested too deeply" in problems(written, "clients: &a [*a]")[0]


def test_five_mistakes_are_five_lines_in_their_order(written: Path) -> None:
    text = """\
listen: nowhere
upstreams:
  - tiemout: 3s
    connect_timeout: 10
    api_key: ${MISSING}
log: {level: loud}
"""
    assert [line.split(": ")[:2] for line in problems(written, text)] == [
        ["1:1", "listen"],
        ["3:5", "upstreams.0.tiemout"],
        ["4:5", "upstreams.0.connect_timeout"],
        ["5:5", "upstreams.0.api_key"],
        ["6:7", "log.level"],
    ]


def test_the_same_name_or_key_under_two_clients_is_refused(written: Path) -> None:
    clients = [{"name": "a", "key_hashes": [HASH]}, {"name": "a", "key_hashes": ["sha256:" + HASH.upper()]}]
    found = problems(written, json.dumps({"clients": clients}))
    assert [line.split(": ", 1)[1] for line in found] == [
        "clients.1.name: name is the same as at clients.0.name on line 1; each must be unique",
        "clients.1.key_hashes.0: key_hashes is the same as at clients.0.key_hashes.0 on line 1; each must be unique",
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(str(tmp_path / "none.yaml"), {})
    assert refused.value.problems == [
        f"{tmp_path}/none.yaml:1:1: cannot be read: No such file or directory; correct this"
    ]


def test_a_file_in_another_encoding_is_refused(written: Path) -> None:
    written.write_bytes(b"listen: \xff\xfe")
    with pytest.raises(ConfigError, match="not YAML in UTF-8"):
        config.load(written, {})
