"""How many examples a property test tries: 100 in the gate, many more in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("PROFILE", "gate"))
