"""How property tests run: an example that takes long on a busy machine is no fault of what it tests.

`make check` tries the same examples every time, so that it says the same of the same code; `make test-full` tries
others each time and more of them (TUNEYARD_EXAMPLES), and what it finds becomes a test of its own.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("tuneyard", deadline=None, derandomize="TUNEYARD_EXAMPLES" not in os.environ)
settings.load_profile("tuneyard")
