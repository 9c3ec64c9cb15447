"""How many examples a property test tries: 100 in the gate, many more in `make fuzz`. And what a shell may have taken
from the tests' processes."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

from tests.support.serving import serve as serve

settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("PROFILE", "gate"))

# A shell lets what it starts in the background ignore this one, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
