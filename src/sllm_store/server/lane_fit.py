"""How long a lane takes for so many bytes, learned from the loads that went over it.

A lane is a source and a destination: the disk to one GPU, say. Its loads are fitted by
t = fixed + per_tensor * tensors + per_byte * bytes with Bayesian linear regression: the prior is a
guess about ordinary machines, and a few loads overrule it, the later the more their times scatter.
Residuals are relative to the time, old loads count less (weights of DECAY ** age), and outliers are
bounded by iteratively reweighted least squares with Huber's weights (P. J. Huber, "Robust
Estimation of a Location Parameter", 1964; P. W. Holland and R. E. Welsch, "Robust Regression Using
Iteratively Reweighted Least-Squares", 1977).

It costs a millisecond or two, and is done only when somebody asks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WINDOW = 24
DECAY = 0.75
_NOISE = 0.03  # What a load's time varies by at least, as a part of it.
_TO_DEVIATION = 1.48  # A normal distribution's standard deviation over its median absolute one.
# How far off a belief may be, as a multiple of it: of (fixed, per tensor, per byte). What tensors
# cost is the code's doing more than the machine's.
_DOUBTS = (10.0, 3.0, 10.0)
_HUBER = 1.0  # Residuals beyond so many deviations are held to count no more.
_ROUNDS = 5
_BYTES_UNIT = 1e9
_TENSORS_UNIT = 1e3
_TINY_S = 1e-6  # A belief of zero would never be overruled.


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished load: how much it moved, and the seconds it would have taken alone."""

    tensors: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed before the first load, loosely."""

    fixed_s: float
    per_tensor_s: float
    bytes_per_s: float

    def means(self) -> tuple[float, float, float]:
        """Return the coefficients of (1, tensors / 1000, bytes / 1e9)."""
        return self.fixed_s, self.per_tensor_s * _TENSORS_UNIT, _BYTES_UNIT / self.bytes_per_s


class LaneFit:
    """Learns one lane."""

    def __init__(self, prior: Prior, samples: Iterable[Sample] = ()) -> None:
        """Start with what is believed, and with samples of an earlier life, the oldest first."""
        self._prior = prior
        self._samples: deque[Sample] = deque(samples, WINDOW)
        self._coefficients: tuple[float, ...] = prior.means()
        self._is_fresh = not self._samples

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The loads that it knows, the oldest first."""
        return tuple(self._samples)

    def add(self, sample: Sample) -> None:
        """Learn from a load."""
        self._samples.append(sample)
        self._is_fresh = False

    def seconds(self, *, tensors: int, size_bytes: int) -> float:
        """Return how long a load of this size takes alone."""
        return _dot(self._fitted(), _features(tensors, size_bytes))

    def seconds_at_once(self, *, tensors: int, size_bytes: int) -> float:
        """Return the same as of the last time that somebody asked, without fitting anything."""
        return _dot(self._coefficients, _features(tensors, size_bytes))

    def as_prior(self) -> Prior:
        """Return what it has learned as a belief about a lane like this one."""
        fixed_s, per_unit_s, per_gb_s = self._fitted()
        return Prior(
            fixed_s=max(fixed_s, _TINY_S),
            per_tensor_s=max(per_unit_s, _TINY_S) / _TENSORS_UNIT,
            bytes_per_s=_BYTES_UNIT / max(per_gb_s, _TINY_S),
        )

    def _fitted(self) -> tuple[float, ...]:
        if not self._is_fresh:
            self._coefficients = _fit(self._samples, self._prior.means())
            self._is_fresh = True
        return self._coefficients


def _fit(samples: Sequence[Sample], means: Sequence[float]) -> tuple[float, ...]:
    """Return the most likely coefficients; none is negative."""
    if not samples:
        return tuple(means)
    rows = [_features(sample.tensors, sample.size_bytes) for sample in samples]
    times = [sample.seconds for sample in samples]
    ages = [DECAY ** (len(samples) - 1 - index) for index in range(len(samples))]
    found = _solve(rows, times, [age / _NOISE**2 for age in ages], means)
    for number in range(_ROUNDS):
        residuals = [
            (time - _dot(found, row)) / time for row, time in zip(rows, times, strict=True)
        ]
        bound = _HUBER * max(_NOISE, _deviation(residuals, ages, middle=0.0))
        noise = _NOISE
        if number == _ROUNDS - 1:  # What all residuals have in common is the belief's doing.
            noise = max(_NOISE, _deviation(residuals, ages, middle=_median(residuals, ages)))
        weights = [
            age * min(1.0, bound / max(abs(residual), _TINY_S)) / noise**2
            for age, residual in zip(ages, residuals, strict=True)
        ]
        found = _solve(rows, times, weights, means)
    return found


def _deviation(values: Sequence[float], weights: Sequence[float], *, middle: float) -> float:
    """Return by how much values deviate from a middle, the odd ones among them ignored."""
    return _TO_DEVIATION * _median([abs(value - middle) for value in values], weights)


def _features(tensors: int, size_bytes: int) -> tuple[float, float, float]:
    return 1.0, tensors / _TENSORS_UNIT, size_bytes / _BYTES_UNIT


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _solve(
    rows: Sequence[Sequence[float]],
    times: Sequence[float],
    weights: Sequence[float],
    means: Sequence[float],
) -> tuple[float, ...]:
    """Solve the normal equations, with coefficients that would be negative held at zero.

    A weight is the inverse variance of a time, as a part of it.
    """
    count = len(means)
    matrix = [[0.0] * count for _ in range(count)]
    right = [0.0] * count
    for index, mean in enumerate(means):
        precision = 1 / (_DOUBTS[index] * mean) ** 2
        matrix[index][index] = precision
        right[index] = precision * mean
    for row, time, weight in zip(rows, times, weights, strict=True):
        scale = weight / time**2
        for i in range(count):
            right[i] += scale * row[i] * time
            for j in range(count):
                matrix[i][j] += scale * row[i] * row[j]
    free = list(range(count))
    while True:
        found = _gauss([[matrix[i][j] for j in free] for i in free], [right[i] for i in free])
        negative = [index for index, value in zip(free, found, strict=True) if value < 0]
        if not negative:
            values = dict(zip(free, found, strict=True))
            return tuple(values.get(index, 0.0) for index in range(count))
        free = [index for index in free if index not in negative]


def _gauss(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small positive definite system by elimination."""
    count = len(right)
    for pivot in range(count):
        for row in range(pivot + 1, count):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            right[row] -= factor * right[pivot]
            for column in range(pivot, count):
                matrix[row][column] -= factor * matrix[pivot][column]
    found = [0.0] * count
    for row in reversed(range(count)):
        known = sum(matrix[row][column] * found[column] for column in range(row + 1, count))
        found[row] = (right[row] - known) / matrix[row][row]
    return found


def _median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the value below which half of the weight is."""
    ordered = sorted(zip(values, weights, strict=True))
    half = sum(weights) / 2
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= half:
            return value
    return 0.0
