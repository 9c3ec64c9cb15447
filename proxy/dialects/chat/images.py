"""Replaces the images, sound and files in an old message by a word.

Pure, bytes to bytes. The caller decides which messages are old.
"""

from __future__ import annotations

from typing import Any

from proxy.core.json_bytes import Malformed, dumps, elements, joined, loads, members

PLACEHOLDERS = {"image_url": "[image]", "input_audio": "[audio]", "file": "[file]", "video_url": "[video]"}


def without_images(raw: bytes) -> bytes:
    """A message with a word in the place of each part whose bytes it carries; what it only links to stays. `raw`
    itself where there is none, or where it cannot be read."""
    if b";base64," not in raw and b'"input_audio"' not in raw:
        return raw
    try:
        found = {name: member.raw for name, member in members(raw).items()}
        content = found.get("content", b"")
        if content.startswith(b"["):
            parts = elements(content)
            new = [_placeholder(part) for part in parts]
            return raw if new == parts else joined(found | {"content": b"[" + b",".join(new) + b"]"})
        if not found.get("images", b"").startswith(b"["):
            return raw
        return _without_drawn(raw, found, elements(found["images"]))
    except Malformed:
        return raw


def _without_drawn(raw: bytes, found: dict[str, bytes], drawn: list[bytes]) -> bytes:
    """A reply without the images that it drew (OpenRouter's `images`), which are named in its text if that is empty."""
    links = [part for part in drawn if _placeholder(part) == part]
    if links == drawn:
        return raw
    words = " ".join([PLACEHOLDERS["image_url"]] * (len(drawn) - len(links)))
    content = dumps(words) if found.get("content", b"null") in (b"null", b'""') else found["content"]
    left = {"images": b"[" + b",".join(links) + b"]"} if links else {}
    return joined({name: value for name, value in found.items() if name != "images"} | {"content": content} | left)


def word(part: Any) -> str:
    """The word for a content part that shows or sounds; empty for any other."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return ""
    return PLACEHOLDERS.get(kind) or next((word for word in PLACEHOLDERS.values() if word[1:-1] in kind), "")


def _placeholder(part: bytes) -> bytes:
    value = loads(part)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in PLACEHOLDERS or not (kind == "input_audio" or _carries(value.get(kind))):
        return part
    return dumps({"type": "text", "text": PLACEHOLDERS[kind]})


def _carries(value: Any) -> bool:
    """Whether a data: URL is in a part's own member, or is it (Mistral)."""
    texts = value.values() if isinstance(value, dict) else [value]
    return any([isinstance(text, str) and text.startswith("data:") for text in texts])
