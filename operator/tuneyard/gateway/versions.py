"""The version of something that others wait to see changed. All methods belong to the event loop's thread."""

from __future__ import annotations

import asyncio


class Version:
    """Grows with every change."""

    def __init__(self) -> None:
        self.number = 0
        self._grown = asyncio.Event()

    def grow(self) -> None:
        """There is something new: who waits goes on."""
        self.number += 1
        self._grown.set()
        self._grown = asyncio.Event()

    async def other_than(self, number: int, within: float) -> None:
        """Return as soon as the version is another than `number`, or after `within` seconds.

        One that is below `number` is another too: this process is younger than who asks.
        """
        try:
            async with asyncio.timeout(within):
                while self.number == number:
                    await self._grown.wait()
        except TimeoutError:
            pass
