"""What stands for an image in an old message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from proxy.dialects.chat.images import without_images, word
from tests.support.shapes import UNREADABLE, messages

URL = "data:image/png;base64," + "A" * 50


def user(*parts: Any) -> bytes:
    return json.dumps({"role": "user", "content": list(parts), "name": "n"}, separators=(",", ":")).encode()


def image(url: Any = URL, **more: Any) -> Any:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(said: str) -> Any:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    ("part", "word"),
    [
        (image(), "[image]"),
        (image(detail="high"), "[image]"),
        ({"type": "image_url", "image_url": URL}, "[image]"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "[audio]"),
        ({"type": "file", "file": {"filename": "f", "file_data": "data:application/pdf;base64,AA"}}, "[file]"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}}, "[video]"),
    ],
)
def test_a_word_takes_its_place(part: Any, word: str) -> None:
    told = user(text("look"), part, text("what is it?"))
    assert without_images(told) == user(text("look"), text(word), text("what is it?"))


@pytest.mark.parametrize(
    "raw",
    [
        user(image("https://example.com/a.png?x=;base64,")),
        user(text("a ;base64, in a text")),
        user({"type": "image_url"}, text(";base64,")),
        user({"type": "unknown", "unknown": {"url": URL}}),
        user("x ;base64,", 1),
        b'{"role":"user","content":"a ;base64, in a text"}',
        b'{"role":"user","name":";base64,"}',
        b'{"role":"user","content":["x;base64,"',
        b'[";base64,"]',
        *UNREADABLE,
    ],
)
def test_everything_else_stays_as_it_is(raw: bytes) -> None:
    assert without_images(raw) is raw


@given(messages)
def test_what_carries_nothing_is_not_touched(message: Any) -> None:
    raw = json.dumps(message).encode()
    assert without_images(raw) is raw


def test_a_second_run_changes_nothing() -> None:
    once = without_images(user(image(), image()))
    assert without_images(once) is once
    assert b"base64" not in once


# Replies that draw


def drew(content: Any, *images: Any) -> bytes:
    return json.dumps({"role": "assistant", "content": content, "images": list(images)}, separators=(",", ":")).encode()


LINK = image("https://example.com/a.png")


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (drew("", image(), image()), {"role": "assistant", "content": "[image] [image]"}),
        (drew(None, image()), {"role": "assistant", "content": "[image]"}),
        (drew("a cat", image()), {"role": "assistant", "content": "a cat"}),
        (drew("", image(), LINK), {"role": "assistant", "content": "[image]", "images": [LINK]}),
        (b'{"images":[{"type":"image_url","image_url":{"url":"data:;base64,A"}}]}', {"content": "[image]"}),
    ],
)
def test_what_a_reply_drew_goes_as_a_word(reply: bytes, wanted: Any) -> None:
    assert json.loads(without_images(reply)) == wanted


@pytest.mark.parametrize("reply", [drew(";base64,", LINK), b'{"images":"data:;base64,A","content":"x"}'])
def test_links_to_what_a_reply_drew_stay(reply: bytes) -> None:
    assert without_images(reply) is reply


@pytest.mark.parametrize(
    ("part", "wanted"),
    [(image(), "[image]"), ({"type": "output_image"}, "[image]"), ({"type": "input_audio"}, "[audio]")]
    + [(text("x"), ""), ("x", ""), (5, ""), ({"type": 5}, ""), ({}, ""), ({"type": "reference"}, "")],
)
def test_which_parts_have_a_word(part: Any, wanted: str) -> None:
    assert word(part) == wanted
