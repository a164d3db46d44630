"""How property tests run: an example that takes long on a busy machine is no fault of what it tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("tuneyard", deadline=None)
settings.load_profile("tuneyard")
