"""StopScanner: ends a streamed text at a stop text, and never shows the beginning of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopScanner:
    """Takes a text in pieces and gives it back, but for what may be the beginning of a stop text.

    `stopped` is the stop text that ended it, or None. Of several, the one that begins first wins,
    and of those the longest that is there.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop text is everywhere"
        self.stopped: str | None = None
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what can be shown now that `text` has come; nothing once it is stopped."""
        if self.stopped is not None:
            return ""
        text = self._held + text
        begun = self._first_begun(text)
        at, stop = self._first_whole(text)
        if stop is not None and at <= begun:
            self.stopped, self._held = stop, ""
            return text[:at]
        self._held = text[begun:]
        return text[:begun]

    def flush(self) -> str:
        """Return what can be shown of what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        at, self.stopped = self._first_whole(held) if self.stopped is None else (0, self.stopped)
        return held[:at]

    def _first_whole(self, text: str) -> tuple[int, str | None]:
        """Return where the first stop text is, and which; the end and None if there is none."""
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found, key=lambda place: place[0], default=(len(text), None))

    def _first_begun(self, text: str) -> int:
        """Return where the first stop text begins that the end of `text` may still become."""
        longest = len(self._stops[0]) if self._stops else 0
        for at in range(max(len(text) - longest + 1, 0), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stops):
                return at
        return len(text)
