"""Cuts a growing text exactly before the first stop string, also where it comes in several pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Holds back what may be the beginning of a stop string; what it gives out is final."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def take(self, text: str) -> str:
        """Add text; return what is now certain not to belong to a stop string."""
        if self.stopped:
            return ""
        self._held += text
        hits = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            self.stopped = True
            return self._give(min(hits))
        return self._give(len(self._held) - max((self._overlap(stop) for stop in self._stops), default=0))

    def rest(self) -> str:
        """What was held back, once no more text comes; empty after a stop string."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text that begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
