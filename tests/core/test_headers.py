"""Headers: what goes on, which session and which tenant they name, and what ours may say."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from proxy.core import headers
from proxy.errors import BadRequest, ConflictingSessionId, InvalidSessionId

NAMES = ["sessionId", "session-id", "x-session-id", "session_id"]
SECRET = b"secret"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


@pytest.mark.parametrize("name", [name for known in sorted(headers.HOP_BY_HOP) for name in (known, known.title())])
def test_hop_by_hop_headers_end_here(name: str) -> None:
    assert headers.end_to_end([(name, "x"), ("Accept", "y")]) == [("Accept", "y")]


def test_what_connection_names_ends_here_too() -> None:
    pairs = [("X-One", "1"), ("Connection", "close, X-One"), ("connection", " x-two ,"), ("x-Two", "2"), ("A", "3")]
    assert headers.end_to_end(pairs) == [("A", "3")]


def test_other_headers_keep_their_spelling_order_and_number() -> None:
    pairs = [("B", "1"), ("a", ""), ("b", "1"), ("B", "2"), ("Cookie", "é\udcff")]
    assert headers.end_to_end(iter(pairs)) == pairs
    assert headers.end_to_end(pairs, without=frozenset(["b"])) == [("a", ""), ("Cookie", "é\udcff")]


def test_a_value_that_is_not_utf_8_is_refused_by_the_name_of_its_header() -> None:
    headers.refuse_invalid_utf8([("a", "plain"), ("b", "é😀")])
    with pytest.raises(BadRequest, match="X-Odd") as refused:
        headers.refuse_invalid_utf8([("a", "plain"), ("X-Odd", "a\udcff")])
    assert refused.value.param == "X-Odd"


@pytest.mark.parametrize("name", [spelled for name in NAMES for spelled in (name, name.upper(), name.lower())])
def test_a_session_id_is_found_under_each_name_in_any_letter_case(name: str) -> None:
    assert headers.session_id(CIMultiDict([("Accept", "x"), (name, "abc")]), NAMES) == "abc"


@pytest.mark.parametrize("name", ["session", "sessionid ", "x-sessionid", "xsession-id"])
def test_no_other_header_names_a_session(name: str) -> None:
    assert headers.session_id(CIMultiDict([(name, "abc")]), NAMES) is None


def test_headers_that_agree_name_one_session() -> None:
    sent = [(name, value) for name in NAMES for value in ("a b", " a b\t")]
    assert headers.session_id(CIMultiDict(sent), NAMES) == "a b"


@pytest.mark.parametrize("other", ["b", "A", "", "a\u00a0"])
def test_headers_that_disagree_are_refused(other: str) -> None:
    with pytest.raises(ConflictingSessionId) as refused:
        headers.session_id(CIMultiDict([("sessionId", "a"), ("session-id", other)]), NAMES)
    assert refused.value.code == "conflicting_session_id"


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ([("SESSIONID", "a"), ("X-Session-Id", "b")], "The headers sessionId and x-session-id carry"),
        (
            [("session_id", "c"), ("x-session-id", "b"), ("sessionId", "a")],
            "session_id, x-session-id and sessionId carry",
        ),
        ([("x-session-id", "a"), ("X-Session-ID", "b")], "The header x-session-id came more than once"),
    ],
)
def test_headers_that_disagree_are_named_and_their_ids_are_not(sent: headers.Pairs, named: str) -> None:
    sent = [(name, f"canary-{value}") for name, value in sent]
    with pytest.raises(ConflictingSessionId, match=named) as refused:
        headers.session_id(CIMultiDict(sent), NAMES)
    assert "canary" not in refused.value.message


@pytest.mark.parametrize(
    ("sent", "preferred"),
    [
        ([("x-session-id", "b"), ("sessionId", "a")], "a"),
        ([("SessionID", " a\t"), ("X-Session-Id", "b"), ("Accept", "c")], "a"),
        ([("sessionId", "a"), ("sessionid", "a"), ("session_id", "b"), ("session_id", "b")], "a"),
        ([("sessionId", "a"), ("x-session-id", "")], "a"),
        ([("sessionId", "a"), ("sessionId", "c"), ("x-session-id", "b")], None),
        ([("sessionId", "a"), ("x-session-id", "b"), ("x-session-id", "c")], None),
        ([("sessionId", "a"), ("x-session-id", "b"), ("session-id", "b")], None),
        ([("session-id", "a"), ("x-session-id", "b")], None),
        ([("sessionId", "a"), ("sessionId", "b")], None),
    ],
)
def test_session_id_is_preferred_to_one_other_header(sent: headers.Pairs, preferred: str | None) -> None:
    assert headers.preferred_id(sent, NAMES) == preferred


def test_what_is_preferred_is_a_session_id_and_one_of_the_names() -> None:
    with pytest.raises(InvalidSessionId):
        headers.preferred_id([("sessionId", ""), ("x-session-id", "b")], NAMES)
    assert headers.preferred_id([("sessionId", "a"), ("x-a", "b"), ("x-b", "c")], ["x-a", "x-b"]) is None


@given(st.lists(st.tuples(st.sampled_from([*NAMES, "SESSIONID", "accept"]), st.sampled_from("ab")), max_size=5))
def test_an_id_is_preferred_only_where_headers_disagree_and_never_another_than_that_of_session_id(
    sent: headers.Pairs,
) -> None:
    try:
        headers.session_id(CIMultiDict(sent), NAMES)
    except ConflictingSessionId:
        said = {value for name, value in sent if name.lower() == "sessionid"}
        others = {name for name, _ in sent if name.lower() in NAMES[1:]}
        expected = said.pop() if len(said) == 1 and len(others) == 1 else None
        if len({value for name, value in sent if name in others}) > 1:
            expected = None
        assert headers.preferred_id(sent, NAMES) == expected


TEMPLATES = [
    "{{ user.id }}",
    "{{LIBRECHAT_BODY_CONVERSATIONID}}",
    "${SESSION_ID}",
    "#{session}",
    "{session_id}",
    "<session-id>",
    "<your session ID>",
    "<%= id %>",
    "<built-in function id>",
    "[object Object]",
    "[object Promise]",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("shape", ["{}", "chat-{}", "{}-7", "a {} b"])
def test_a_template_that_was_not_filled_in_is_seen_wherever_it_stands(template: str, shape: str) -> None:
    assert headers.placeholder(shape.replace("{}", template)) == template


@pytest.mark.parametrize(
    "value",
    ["undefined", "null", "None", "nil", "NaN", "NULL", "<nil>", "(null)", "[null]", '"undefined"', "$SESSION_ID"]
    + ["$id", "%SESSION%", "%s", "%(id)s", "", " ", "\u00a0", '""', "''"],
)
def test_an_id_that_is_what_stands_for_no_value_is_seen_whole(value: str) -> None:
    assert headers.placeholder(value) == value


@pytest.mark.parametrize("word", ["undefined", "null", "None", "NaN"])
@pytest.mark.parametrize("mark", "-_:/.")
def test_no_value_behind_a_prefix_is_seen(word: str, mark: str) -> None:
    assert headers.placeholder(f"user{mark}{word}") == word


@pytest.mark.parametrize(
    "value",
    ["a", "user-7", "nullable", "none-of-it", "Nilsson", "undefined-7", "annual", "-", "{", "{}", "🙂", "100%", "$5"]
    + ["{6F9619FF-8B86-D011-B42D-00C04FC964FF}", '{"a":1}', "<CAF=x1@mail.example.com>", "<@U024BE7LH>", "a<b", "%"]
    + ["@alice:example.org", "!room:example.org", "$Rqnc1Fx2dvnEYJTyHqQiKxU2bZ1CI92zkuZq3a5lr5Zg", "ses_5c1a", "a b"]
    + ["[2001:db8::1]:443", "日本語", "'; --", "x" * 256],
)
def test_what_may_be_an_id_is_taken_for_one(value: str) -> None:
    assert headers.placeholder(value) is None


@given(st.uuids(), st.integers(), st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12))
def test_ids_that_programs_make_are_none_of_these(unique: object, number: int, word: str) -> None:
    for made in (str(unique), str(number), f"chat:{number}", f"{word}-{number}", f"{{{unique}}}"):
        assert headers.placeholder(made) is None


@given(st.text(max_size=256))
def test_any_text_shows_a_part_of_itself_or_none(text: str) -> None:
    shown = headers.placeholder(text)
    assert shown is None or shown in text


@pytest.mark.parametrize("value", ["a", "x" * 256, "😀" * 256, "é", "a b", "../..", "\u00a0", "a\u200b", "'; --"])
def test_any_text_of_1_to_256_characters_is_a_session_id(value: str) -> None:
    assert headers.session_id(CIMultiDict([("sessionId", value)]), NAMES) == value
    assert headers.valid_id(value) == value


@pytest.mark.parametrize(
    "value", ["", "  ", "x" * 257, "a\tb", "\x1fa", "a\x7f", "a\x00b", "a\x85", "\udcff", "a\ud83d"], ids=ascii
)
def test_other_values_are_no_session_id(value: str) -> None:
    with pytest.raises(InvalidSessionId) as refused:
        headers.session_id(CIMultiDict([("sessionId", value)]), NAMES)
    assert refused.value.code == "invalid_session_id"
    with pytest.raises(InvalidSessionId):
        headers.valid_id(value.strip(" "))


def test_an_id_that_is_no_header_keeps_the_spaces_around_it() -> None:
    assert headers.valid_id("  a ") == "  a "


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([], None),
        ([("x-api-key", "3")], "3"),
        ([("Accept", "x"), ("x-api-key", "3")], "3"),
        ([("X-Api-Key", "3"), ("Api-Key", "2"), ("authorization", "Bearer 1")], "Bearer 1"),
        ([("Authorization", "Bearer 1"), ("authorization", "Bearer 2")], "Bearer 1"),
        ([("Authorization", ""), ("api-key", "2")], "2"),
        ([("Authorization", "")], None),
    ],
)
def test_the_credential_is_the_first_of_its_headers_that_says_something(
    pairs: headers.Pairs, wanted: str | None
) -> None:
    assert headers.credential(CIMultiDict(pairs)) == wanted


@pytest.mark.parametrize(
    ("credential", "key"),
    [("Bearer k", "k"), ("bearer  k ", "k"), ("k", "k"), ("Basic k", "Basic k"), ("Bearer ", "Bearer "), ("", "")],
)
def test_the_key_is_what_follows_bearer(credential: str, key: str) -> None:
    assert headers.bare_key(credential) == key


def test_a_client_is_named_by_any_of_its_keys() -> None:
    clients = [("kitchen", [digest("k1"), digest("k2")]), ("hall", (digest("h\udcff"),))]
    assert headers.client_name("Bearer k1", clients) == "kitchen"
    assert headers.client_name("k2", clients) == "kitchen"
    assert headers.client_name("Bearer h\udcff", clients) == "hall"
    assert headers.client_name("Bearer other", clients) is None
    assert headers.client_name(None, clients) is None


@given(
    st.lists(st.tuples(st.sampled_from(["client", "credential", "header", "one"]), st.none() | st.text()), unique=True)
)
def test_tenants_of_different_kind_or_value_stay_apart(parts: list[tuple[str, str | None]]) -> None:
    tenants = {headers.tenant(kind, _text(value), SECRET) for kind, value in parts}
    assert len(tenants) == len({(kind, _text(value)) for kind, value in parts})


def _text(value: str | None) -> str | None:
    """What a header can hold: valid text, or bytes that arrive as surrogate escapes."""
    return value and value.encode(errors="replace").decode()


def test_a_tenant_depends_on_the_secret_and_shows_nothing_of_the_value() -> None:
    tenant = headers.tenant("credential", "Bearer k", SECRET)
    assert tenant != headers.tenant("credential", "Bearer k", b"other")
    assert len(tenant) == 32
    assert headers.tenant("credential", "k\udcff", SECRET) != headers.tenant("credential", "k\udcfe", SECRET)


@pytest.mark.parametrize(
    ("sent", "words", "wanted"),
    [
        ({}, ["no"], None),
        ({"x": "no"}, ["no"], "no"),
        ({"x": " NO "}, ["no"], "no"),
        ({"x": "Resend\t"}, ["auto", "append", "resend"], "resend"),
        ({"y": "odd"}, ["auto", "append"], None),
    ],
)
def test_a_choice_is_one_of_its_words_in_any_letter_case(
    sent: dict[str, str], words: list[str], wanted: str | None
) -> None:
    assert headers.choice(sent, "x", words) == wanted


@pytest.mark.parametrize("value", ["", "yes", "no no", "0", "n"])
@pytest.mark.parametrize(("words", "known"), [(["no"], "'no'"), (["no", "never", "off"], "'no' or 'never' or 'off'")])
def test_a_choice_of_another_word_is_refused_by_its_name_and_the_words_it_knows(
    value: str, words: list[str], known: str
) -> None:
    with pytest.raises(BadRequest, match=f"The header x-session-store can be {known}. Send") as refused:
        headers.choice({"x-session-store": value}, "x-session-store", words)
    assert refused.value.param == "x-session-store"


@pytest.mark.parametrize("key", ["a", "x" * 255, "ü" * 255, "a b", " ", "'; --", "\u200b"], ids=ascii)
def test_any_text_of_1_to_255_characters_is_an_idempotency_key(key: str) -> None:
    assert headers.idempotency_key({"Idempotency-Key": key}) == key


def test_without_its_header_there_is_no_idempotency_key() -> None:
    assert headers.idempotency_key({"X-Idempotency-Key": "a"}) is None


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\x00", "a\x7f", "a\x85"], ids=ascii)
def test_other_values_are_no_idempotency_key(key: str) -> None:
    with pytest.raises(BadRequest, match="1 to 255 characters") as refused:
        headers.idempotency_key({"Idempotency-Key": key})
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")
    assert refused.value.param == "Idempotency-Key"
