"""What the last loads took beside what their lanes say: of one model in one way, and off the disk.

A lane's three numbers do not tell what is particular about a model out of memory, or about a
mixture of sources; the median of its last few loads does, as far as it is more than their scatter:
what is known of one is shrunk by what is not (W. James and C. Stein, "Estimation with Quadratic
Loss", 1961), as a mean of n loads with a deviation of s among things that differ by d counts for
n d^2 / (n d^2 + s^2). And a disk, above all a virtual one, is
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
    from collections.abc import Callable, Iterable, Sequence

    from sllm_store.server.estimate import Demand

KEPT = 3
WAYS_MAX = 512
PARTICULAR = 0.05  # What models differ by in one way, as a part of what their lanes say.
_SCATTER = 0.05  # What loads alike differ by, for all that two of them would tell.
_GUESSED = 2
_ALIKE = 8  # So many other models, those loaded last, tell how much loads scatter.
_ODD = 3 * _SCATTER  # A load that is off by more counts for no more.
_TO_DEVIATION = 1.25  # A normal distribution's standard deviation over its mean absolute one.
_GAINS = (0.6, 0.9, 0.3, 0.0)
_NEWEST = 0.08  # Weight of the last load in what a gain is judged by.
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

        Of a model that was not loaded so, others tell; the fewer loads and the less they agree, the
        nearer to 1.
        """
        alike = [key for key in reversed(self._loads) if key[0] == way and key[1] != model]
        logs = {
            key[1]: [math.log(seconds / expected(demand)) for demand, seconds in self._loads[key]]
            for key in [(way, model), *alike[:_ALIKE]]
            if key in self._loads
        }
        known = logs.get(model) or [off for offs in logs.values() for off in offs]
        if not known:
            return 1.0
        certain = len(known) * PARTICULAR**2
        return math.exp(
            statistics.median(known) * certain / (certain + _scatter(logs.values()) ** 2)
        )


def _scatter(groups: Iterable[Sequence[float]]) -> float:
    """Return by how much loads of one model deviate from each other."""
    total, freedom = _SCATTER * _GUESSED, _GUESSED
    for offs in groups:
        middle = statistics.median(offs)
        total += _TO_DEVIATION * sum(min(abs(off - middle), _ODD) for off in offs)
        freedom += len(offs) - 1
    return total / freedom


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
