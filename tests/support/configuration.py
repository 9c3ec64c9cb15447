"""A configuration as a text, read as a file of it would be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.config import model as config
from proxy.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "config"
HASH = hashlib.sha256(b"kitchen-key").hexdigest()
SECRET = "sk-very-secret"


def load(path: Path, text: str, **environ: str) -> config.Config:
    path.write_text(text, "utf-8")
    return config.load(path, environ)


def problems(path: Path, text: str, **environ: str) -> list[str]:
    """The problem lines of a text, without the name of the file."""
    with pytest.raises(ConfigError) as refused:
        load(path, text, **environ)
    assert all(line.startswith(f"{path}:") for line in refused.value.problems)
    return [line.removeprefix(f"{path}:") for line in refused.value.problems]


def upstream(**keys: Any) -> str:
    return json.dumps({"upstreams": [keys]})
