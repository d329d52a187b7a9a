"""What a load asks of the interpreter it runs in, and gives back when it is over.

A load waits for the store or for native threads a dozen times, and after each wait wants the
interpreter lock back. A thread that computes in Python keeps it for a switch interval, 5 ms unless
told otherwise: a dozen of those are a fifth of a load of 16 GB. And while tens of thousands of
tuples are made, every collection looks at all of them and at all that the frameworks made before,
in vain: there are no cycles among them. With PyTorch imported one takes 80 ms.
"""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SWITCH_INTERVAL_S = 0.0001


class _Wish:
    """A setting of the process that is changed while anybody wishes it, then put back."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        """`change` makes the change, and returns what undoes it."""
        self._change = change
        self._undo: Callable[[], None] | None = None
        self._wishes = 0
        self._lock = threading.Lock()

    @contextmanager
    def granted(self) -> Iterator[None]:
        """Have the change for the time of a with block, in whatever threads."""
        with self._lock:
            self._wishes += 1
            if self._wishes == 1:
                self._undo = self._change()
        try:
            yield
        finally:
            with self._lock:
                self._wishes -= 1
                if self._wishes == 0 and self._undo is not None:
                    self._undo()


def _switch_often() -> Callable[[], None]:
    before_s = sys.getswitchinterval()
    if before_s <= SWITCH_INTERVAL_S:
        return lambda: None
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    ours_s = sys.getswitchinterval()

    def undo() -> None:
        if sys.getswitchinterval() == ours_s:  # Else somebody else has set it meanwhile.
            sys.setswitchinterval(before_s)

    return undo


def _stop_collecting() -> Callable[[], None]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


_TURNS = _Wish(_switch_often)
_COLLECTION = _Wish(_stop_collecting)

# Threads that wait for the interpreter lock get it soon, for the time of a with block.
short_turns = _TURNS.granted
# No garbage is collected for the time of a with block: until the bytes of a load move.
no_collection = _COLLECTION.granted
