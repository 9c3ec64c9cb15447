"""Variables and secrets in the configuration, and who may use a key of ours."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import model as config
from proxy.errors import ConfigError
from tests.support.configuration import (
    HASH,
    SECRET,
    SHIPPED,
    load,
    problems,
    upstream,
)


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("${NAME}", "value"),
        ("a-${NAME}-${OTHER:-b}", "a-value-b"),
        ("${NAME:-unused}", "value"),
        ("${EMPTY:-filled}", "filled"),
        ("${OTHER:-}x", "x"),
        ("$${NAME}", "${NAME}"),
        ("$NAME", "$NAME"),
        ("${file:note}", "from the file"),
        ("'${NAME}'", "value"),
    ],
)
def test_variables_are_expanded_in_values(written: Path, said: str, path: str) -> None:
    (written.parent / "note").write_text("from the file\n")
    assert load(written, f"store:\n  path: {said}", NAME="value", EMPTY="").store.path == path


def test_a_credential_stands_in_for_a_variable(written: Path) -> None:
    (written.parent / "KEY").write_text("from systemd\n")
    folder = str(written.parent)
    assert load(written, "store:\n  path: ${KEY}", CREDENTIALS_DIRECTORY=folder).store.path == "from systemd"
    assert load(written, "store:\n  path: ${KEY:-x}", CREDENTIALS_DIRECTORY=folder, KEY="set").store.path == "set"
    assert load(written, "store:\n  path: ${NONE:-x}", CREDENTIALS_DIRECTORY=folder).store.path == "x"
    assert "NONE is not set" in problems(written, "store:\n  path: ${NONE}", CREDENTIALS_DIRECTORY=folder)[0]


def test_the_shipped_file_takes_the_key_from_a_credential_and_none_from_an_empty_one(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    for said, key in ((f"{SECRET}\n", SECRET), ("\n", None)):
        (tmp_path / "UPSTREAM_API_KEY").write_text(said)
        found = config.load(SHIPPED / "session-proxy.yaml", environ).upstreams[0].api_key
        assert (found and found.get_secret_value()) == key


def test_a_file_of_a_key_that_everybody_can_read_is_refused(written: Path) -> None:
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to others
        folder, key = Path(made), Path(made, "key")
        key.write_text(SECRET)
        folder.chmod(0o755)
        for mode, why in ((0o604, True), (0o640, False), (0o600, False)):
            key.chmod(mode)
            text = f"upstreams:\n  - api_key: ${{file:{key}}}"
            if why:
                say = f"2:5: upstreams.0.api_key: everybody can read the file {key}; chmod 600 it"
                assert problems(written, text) == [say]
            else:
                assert load(written, text).lends_key
        key.chmod(0o644)
        folder.chmod(0o700)
        assert load(written, text).lends_key


def test_an_expanded_value_is_text_until_its_key_reads_it(written: Path) -> None:
    text = "store: {path: '${A}'}\nsessions:\n  queue_limit: ${B}\nupstreams:\n  - forward: ${C}"
    made = load(written, text, A="7", B="7", C="true")
    assert (made.store.path, made.sessions.queue_limit, made.upstreams[0].forward) == ("7", 7, True)


def test_a_variable_cannot_write_yaml(written: Path) -> None:
    made = load(written, "store:\n  path: ${EVIL}", EVIL="x\nlisten: 0.0.0.0:1 # ${NAME}")
    assert made.listen == "127.0.0.1:8484"
    assert made.store.path == "x\nlisten: 0.0.0.0:1 # ${NAME}"


def test_a_plain_value_that_becomes_empty_is_null_and_a_quoted_one_is_not(written: Path) -> None:
    assert load(written, "upstreams:\n  - api_key: ${KEY:-}").upstreams[0].api_key is None
    assert load(written, "upstreams:\n  - api_key: ${KEY}", KEY="").upstreams[0].api_key is None
    assert len(problems(written, "upstreams:\n  - api_key: '${KEY:-}'")) == 1


def test_keys_are_not_expanded(written: Path) -> None:
    assert "unknown key '${NAME}'" in problems(written, "'${NAME}': 1", NAME="listen")[0]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("${NAME}", "NAME is not set; set it or write ${NAME:-default}"),
        ("${file:none}", "the file none cannot be read; create it, readable and in UTF-8"),
        ("'${file:\\0}'", None),
        ("${1X}", "write ${NAME}, ${NAME:-default} or ${file:PATH}, or $${ for a plain ${"),
        ("${NAME", "write ${NAME}, ${NAME:-default} or ${file:PATH}, or $${ for a plain ${"),
    ],
)
def test_a_variable_that_cannot_be_expanded_is_one_line(written: Path, said: str, problem: str | None) -> None:
    found = problems(written, f"listen: {said}")
    assert len(found) == 1
    assert problem is None or found == [f"1:1: listen: {problem}"]


def test_every_variable_that_is_missing_is_named(written: Path) -> None:
    assert len(problems(written, "store:\n  path: ${A}/${B}")) == 2


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        "upstreams: [{api_key: 'S x'}]",
        "upstreams: [{api_key: [S]}]",
        "upstreams: [{api_kye: S}]",
        "upstreams: [{api_key: *S}]",
        "upstreams: [{api_key: !S x}]",
        "upstreams: [{base_url: 'https://user:S@h'}]",
        "upstreams: [{base_url: 'https://h:S'}]",
        "upstreams: [{forward: S, connect_timeout: S, mount: S, profile: S, affinity: S}]",
        "sessions: {queue_limit: S, mode: S}\nlisten: S\ntenant: S\nlog: S\nclients: S\nadmin: {token: S}",
    ],
)
@pytest.mark.parametrize("loader", [getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader])
def test_a_problem_never_shows_a_value(written: Path, text: str, loader: Any) -> None:
    written.write_text(text.replace("S", SECRET))
    with pytest.raises(ConfigError) as refused:
        config.load(written, {}, loader)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__context__ is None


def test_a_configuration_never_shows_its_keys(written: Path) -> None:
    made = load(written, upstream(api_key=SECRET))
    assert SECRET not in repr(made) + str(made) + str(made.model_dump())


# Our key and who may reach it

OPEN = [
    "0.0.0.0:80",
    "127.example.org:80",
    "[::]:80",
    "192.168.1.2:80",
    "proxy.example.org:80",
    "[::ffff:10.0.0.1]:80",
    "cafe:80",
]
CLOSED = ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80", "LocalHost:80", "unix:/run/x"]


@pytest.mark.parametrize("listen", OPEN)
def test_our_key_without_clients_is_not_served_to_the_world(written: Path, listen: str) -> None:
    found = problems(written, json.dumps({"listen": listen, "upstreams": [{"api_key": SECRET}]}))
    assert found == [
        "1:2: listen: lets everybody who reaches this address use your api_key; listen on 127.0.0.1 or"
        " unix:/path, list the callers under clients, or remove api_key"
    ]


@pytest.mark.parametrize("listen", CLOSED)
def test_our_key_may_be_served_on_loopback(written: Path, listen: str) -> None:
    made = load(written, json.dumps({"listen": listen, "upstreams": [{"api_key": SECRET}]}))
    assert config.unsafe(made, listen) is None
    assert "remove api_key" in (config.unsafe(made, "0.0.0.0:1") or "")


@pytest.mark.parametrize("listen", OPEN)
def test_without_a_key_of_ours_or_with_clients_any_listener_is_safe(written: Path, listen: str) -> None:
    clients = [{"name": "kitchen", "key_hashes": [HASH]}]
    load(written, json.dumps({"listen": listen}))
    load(written, json.dumps({"listen": listen, "clients": clients, "upstreams": [{"api_key": SECRET}]}))


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({}, "credential"),
        ({"upstreams": [{"api_key": SECRET}]}, "one"),
        ({"upstreams": [{"api_key": SECRET}], "listen": "unix:/run/x"}, "one"),
        ({"upstreams": [{"api_key": SECRET}], "tenant": "credential"}, "credential"),
        (
            {"upstreams": [{"api_key": SECRET}], "clients": [{"name": "a", "key_hashes": [HASH]}]},
            "credential",
        ),
        ({"tenant": "one"}, "one"),
        ({"tenant": {"header": "x-user"}}, {"header": "x-user"}),
    ],
)
def test_everybody_shares_only_where_set_or_where_our_key_is_lent_on_loopback(
    written: Path, keys: dict[str, Any], rule: object
) -> None:
    assert load(written, json.dumps(keys)).tenant_rule == rule


def test_a_listener_from_the_command_line_counts_for_whose_sessions_they_are(written: Path) -> None:
    made = load(written, upstream(api_key=SECRET))
    assert made.model_copy(update={"listen": "0.0.0.0:1"}).tenant_rule == "credential"
