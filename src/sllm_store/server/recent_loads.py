"""What the last loads took beside what their lanes say: of one model in one way, and off the disk.

A lane's three numbers do not tell what is particular about a model out of memory, or about a
mixture of sources; the median of its last few loads does. And a disk, above all a virtual one, is
faster or slower for minutes at a time: its pace is followed from load to load, as far as following
it has helped of late (exponential smoothing, C. C. Holt, "Forecasting Seasonals and Trends", 1957;
of a few weights for a new observation, the one that has predicted best).
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.server.estimate import Demand

KEPT = 3
WAYS_MAX = 512
_GAINS = (0.6, 0.9, 0.3, 0.0)
_NEWEST = 0.2  # Weight of the last load in what a gain is judged by.
_SURPRISE_MAX = math.log(4.0)


class RecentLoads:
    """The last loads of each model in each way, the ways used longest ago forgotten first."""

    def __init__(self) -> None:
        self._loads: OrderedDict[tuple[str, str], deque[tuple[Demand, float]]] = OrderedDict()

    def add(self, way: str, demand: Demand, seconds: float) -> None:
        """Note what a load took."""
        key = way, demand.model
        self._loads.setdefault(key, deque(maxlen=KEPT)).append((demand, seconds))
        self._loads.move_to_end(key)
        while len(self._loads) > WAYS_MAX:
            self._loads.popitem(last=False)

    def factor(self, way: str, model: str, expected: Callable[[Demand], float]) -> float:
        """Return what loads of this model in this way take, as a multiple of what is expected.

        Of a model that was not loaded so, others tell; the fewer loads, the nearer to 1.
        """
        known = self._loads.get((way, model)) or [
            load for (other, _), loads in self._loads.items() if other == way for load in loads
        ]
        if not known:
            return 1.0
        off = statistics.median(math.log(seconds / expected(demand)) for demand, seconds in known)
        return math.exp(off * len(known) / (len(known) + 1))


class Pace:
    """How long the disk takes now, as a multiple of what its lanes have learned."""

    def __init__(self) -> None:
        self._paces = [0.0] * len(_GAINS)
        self._errors = [0.0] * len(_GAINS)

    @property
    def factor(self) -> float:
        """The pace by the gain that has predicted best of late."""
        return math.exp(self._paces[self._errors.index(min(self._errors))])

    def learn(self, ratio: float) -> None:
        """Take what a load took, as a multiple of what was expected of it at pace 1."""
        taken = max(-_SURPRISE_MAX, min(math.log(ratio), _SURPRISE_MAX))
        for index, gain in enumerate(_GAINS):
            surprise = taken - self._paces[index]
            self._errors[index] += _NEWEST * (abs(surprise) - self._errors[index])
            self._paces[index] += gain * surprise
