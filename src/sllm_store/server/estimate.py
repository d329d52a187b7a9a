"""How long a load will take: what it has to move, what its lanes are known to do, who is ahead.

A load takes the time of its calls (planning, allocating, messages) and of its transfer. Reading
and copying overlap, so a transfer takes as long as its slowest lane: the roofline of S. Williams,
A. Waterman and D. Patterson ("Roofline", 2009), with lanes for arithmetic units. Lanes are learned
from finished loads (lane_fit.py); the disk's also from those that it served in part, if it was the
slowest. What the last few loads of a model took against what their lanes said is a factor of its
own, and so is the disk's pace of the last minutes (recent_loads.py). Before the first load the disk
and the links are believed to do what was measured of them (start_rates.py).

Loads that run at once share the disk, the host's memory or a link equally, as in processor sharing
(L. Kleinrock, 1967): a load of w seconds beside others with r_i seconds left ends after
w + sum(min(r_i, w)), by whichever of what it shares is the fullest. The same rule turns the time of
a finished load into what it would have taken alone. GPUs that lend each other their links have one
lane together.

Everything here is arithmetic on a few dozen numbers; nothing waits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sllm_store.server.lane_fit import LaneFit, Prior, Sample
from sllm_store.server.recent_loads import Pace, RecentLoads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

DISK, CACHE, HOST, DEVICE = "disk", "cache", "host", "device"
CPU = "cpu"
PURE_PART = 0.98
_ALONE_PART = 0.8
_REMAINING_MIN_PART = 0.05
_TOLD_PART = 0.1  # Of a transfer: from then on its own rate says more than what others took.
_SECONDS_MIN = 1e-6
_BUSY_PART = 0.5  # Of a load's time: what it uses for less is left to others.
_LEARNED_FROM = 4  # Loads from a disk, before those that follow tell its pace.
_CALLS, _READING, _MAPPED = "calls", "reading", "mapped"
_SEPARATOR = ">"
_CODED = "+coded"
_LENT = "+lent"

_PRIORS = {
    (DISK, CPU): Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=2e9),
    (DISK, "gpu"): Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=2e9),
    (CACHE, CPU): Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=8e9),
    (CACHE, "gpu"): Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=16e9),
    (HOST, CPU): Prior(fixed_s=1e-5, per_tensor_s=1e-9, bytes_per_s=1e15),  # It is mapped.
    (HOST, "gpu"): Prior(fixed_s=0.001, per_tensor_s=1e-6, bytes_per_s=25e9),
    (DEVICE, "gpu"): Prior(fixed_s=0.001, per_tensor_s=1e-6, bytes_per_s=500e9),
    (_CALLS, CPU): Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=1e13),
    (_CALLS, "gpu"): Prior(fixed_s=0.005, per_tensor_s=1e-6, bytes_per_s=5e12),
    (_CALLS, _MAPPED): Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=1e14),
    (_READING, CPU): Prior(fixed_s=0.004, per_tensor_s=2e-6, bytes_per_s=1e13),
    (_READING, "gpu"): Prior(fixed_s=0.006, per_tensor_s=2e-6, bytes_per_s=5e12),
}
_DECODING = Prior(fixed_s=0.005, per_tensor_s=5e-6, bytes_per_s=4e9)  # In the client.


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a load moves: bytes by where they are now, and bytes by the GPU that gets them.

    Without GPUs the bytes stay in host memory. `arena_bytes` is what all arenas take. `coded` bytes
    are decoded where they arrive; those that stay in host memory are decoded by the client, also
    beside GPUs, which `decodes_on_host` tells. What is `mapped` is where it is wanted already, and
    does not move.
    """

    model: str
    sources: Mapping[str, int]
    gpus: Mapping[str, int] = field(default_factory=dict)
    arena_bytes: int = 0
    tensors: int = 0
    coded: bool = False
    decodes_on_host: bool = False
    mapped: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes to move, wherever they are."""
        return sum(self.sources.values())

    @property
    def reads(self) -> bool:
        """Whether anything comes from files."""
        return bool(self.sources.get(DISK) or self.sources.get(CACHE))

    def from_host(self) -> Demand:
        """Return the same load once everything is in the host pool."""
        return replace(self, sources={HOST: self.size_bytes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A prediction. `wait_s` of `seconds` is due to loads that run already, `loads_ahead` of them.

    `samples` counts the loads that the slowest lane was learned from, or the calls where no bytes
    move: 0 is a guess.
    """

    seconds: float
    wait_s: float
    loads_ahead: int
    samples: int


@dataclass(slots=True, eq=False)
class Running:
    """A transfer that runs: how long it would take alone, and how much of that is done.

    `busy` is what it shares with others that use it: the disk, the host's memory, links by GPU.
    `progress` tells which part of its bytes has arrived.
    """

    demand: Demand
    busy: frozenset[str]
    alone_s: float
    started_s: float
    progress: Callable[[], float]
    done_s: float = 0.0

    def remaining_s(self) -> float:
        """Seconds that it still needs alone, by its own rate so far as soon as that can be told.

        One that is late and does not tell is about to end.
        """
        part = self.progress()
        if part >= _TOLD_PART:
            return self.done_s * max(1 - part, 0.0) / part
        return max(self.alone_s - self.done_s, self.alone_s * _REMAINING_MIN_PART)


@dataclass(frozen=True, slots=True)
class _Lane:
    """What a load has on one of its lanes, and what that shares with other loads."""

    name: str
    size_bytes: int
    shared: frozenset[str]


class Estimator:
    """Learns from loads and predicts them. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float],
        remembered: Mapping[str, Iterable[Sample]] | None = None,
        rates: Mapping[str, float] | None = None,
        lent: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Start with what an earlier estimator of this machine remembered, by lane.

        `rates` are bytes a second that are known of the disk and of links, by GPU: what is
        believed of lanes that nothing is remembered of. `lent` are the GPUs whose links a GPU's
        loads go over besides its own.
        """
        self._clock = clock
        self._lent = dict(lent or {})
        self._rates = dict(rates or {})
        self._fits = {
            lane: LaneFit(self._prior(lane), samples)
            for lane, samples in (remembered or {}).items()
            if _kind(lane)[:2] in _PRIORS
        }
        self._recent = RecentLoads()
        self._pace = Pace()
        self._running: list[Running] = []
        self._ended: list[tuple[Demand, float, float]] = []  # Seconds alone, and in all.
        self._moved_on_s = clock()
        self._lock = threading.Lock()

    def estimate(self, demand: Demand) -> Estimate:
        """Return how long a load that starts now will take."""
        with self._lock:
            self._catch_up()
            self._move_on()
            wait_s, ahead = 0.0, 0
            filler = next((one for one in self._running if _fills_same(one, demand)), None)
            if filler is not None:
                crowd = self._crowd(filler.busy)
                ahead = max(map(len, crowd))
                wait_s = filler.remaining_s() * ahead
                demand = demand.from_host()
            lane, alone_s = self._alone(demand)
            busy = frozenset() if demand.mapped else self._busy(demand)
            crowd = [[one for one in users if one is not filler] for users in self._crowd(busy)]
            shared_s = max(
                (sum(min(one.remaining_s(), alone_s) for one in users) for users in crowd),
                default=0.0,
            )
            beside = {id(one) for users in crowd for one in users}
            calls = self._fit(_calls(demand))
            calls_s = calls.seconds(tensors=demand.tensors, size_bytes=demand.arena_bytes)
            moves = demand.gpus or demand.reads
            counted = self._fit(lane) if moves and not demand.mapped else calls
            return Estimate(
                seconds=calls_s + wait_s + alone_s + shared_s,
                wait_s=wait_s + shared_s,
                loads_ahead=ahead + len(beside),
                samples=len(counted.samples),
            )

    def begin(self, demand: Demand, progress: Callable[[], float] = lambda: 0.0) -> Running:
        """Note that a transfer starts now; end it with finish, whatever becomes of it."""
        with self._lock:
            self._catch_up()
            now_s = self._move_on()
            lane, alone_s = self._slowest(demand, at_once=True)
            running = Running(
                demand=demand,
                busy=self._busy(demand, at_once=True),
                alone_s=alone_s * self._pace_of(lane),
                started_s=now_s,
                progress=progress,
            )
            self._running.append(running)
            return running

    def finish(self, running: Running, moved: Mapping[str, int] | None) -> None:
        """Note that a transfer has ended, to learn from it; `moved` is None where it failed.

        Otherwise it says where the bytes did come from, which its demand could only expect. Nothing
        is learned before somebody asks: a client still waits to be told of its bytes.
        """
        with self._lock:
            wall_s = self._move_on() - running.started_s
            self._running.remove(running)
            if moved is not None and wall_s > 0:
                demand = replace(running.demand, sources=moved)
                self._ended.append((demand, running.done_s, wall_s))

    def calls_took(self, demand: Demand, seconds: float) -> None:
        """Learn what a load took besides its transfer."""
        with self._lock:
            self._catch_up()
            taken = Sample(demand.tensors, demand.arena_bytes, max(seconds, 1e-6))
            self._fit(_calls(demand)).add(taken)

    def remember(self) -> dict[str, tuple[Sample, ...]]:
        """Return what was learned, by lane, for another life: off the disk, at its last pace."""
        with self._lock:
            self._catch_up()
            return {
                lane: tuple(
                    replace(one, seconds=one.seconds * self._pace_of(lane)) for one in fit.samples
                )
                for lane, fit in self._fits.items()
                if fit.samples
            }

    def _catch_up(self) -> None:
        """Learn from the transfers that have ended, in turn."""
        ended, self._ended = self._ended, []
        for demand, done_s, wall_s in ended:
            lane, _ = self._slowest(demand, at_once=True)
            if done_s >= _ALONE_PART * wall_s or not self._fit(lane).samples:
                self._learn(demand, lane, done_s)

    def _learn(self, demand: Demand, lane: str, seconds: float) -> None:
        """Take what a transfer took alone; off the disk, as it would have been at pace 1."""
        mixture = _mixture(demand)
        size_bytes = demand.size_bytes
        if _bound(lane) == DISK:
            if len(self._fit(lane).samples) >= _LEARNED_FROM:
                self._pace.learn(seconds / self._at_pace(demand))
            seconds /= self._pace_of(lane)
            size_bytes = demand.sources[DISK]
        if mixture is None:
            self._fit(lane).add(Sample(demand.tensors, size_bytes, seconds))
        elif _bound(lane) == DISK:  # What the disk had of it is a load like others.
            usual_s = seconds / self._particular(demand, lane)
            self._fit(lane).add(Sample(demand.tensors, size_bytes, usual_s))
        if mixture or _bound(lane) != DISK:
            self._recent.add(mixture or lane, demand, seconds)

    def _move_on(self) -> float:
        """Let time pass for those that run: who shares with others does a part of it."""
        now_s = self._clock()
        passed_s = now_s - self._moved_on_s
        for one in self._running:
            one.done_s += passed_s / max(map(len, self._crowd(one.busy)))
        self._moved_on_s = now_s
        return now_s

    def _crowd(self, busy: frozenset[str]) -> list[list[Running]]:
        """Return who uses each of what a load shares."""
        return [[one for one in self._running if shared in one.busy] for shared in busy]

    def _alone(self, demand: Demand) -> tuple[str, float]:
        """Return the slowest lane of a demand and the seconds it takes with nobody beside it."""
        slowest, _ = self._slowest(demand)
        if demand.mapped:
            return slowest, 0.0
        return slowest, self._at_pace(demand) * self._pace_of(slowest)

    def _pace_of(self, lane: str) -> float:
        return self._pace.factor if _bound(lane) == DISK else 1.0

    def _at_pace(self, demand: Demand) -> float:
        """Return the seconds that a demand takes alone, off a disk at pace 1."""
        slowest, seconds = self._slowest(demand)
        return seconds * self._particular(demand, slowest)

    def _particular(self, demand: Demand, lane: str) -> float:
        """Return what a demand takes as a multiple of what its slowest lane says."""
        way = _mixture(demand) or lane
        return self._recent.factor(way, demand.model, lambda one: self._slowest(one)[1])

    def _slowest(self, demand: Demand, *, at_once: bool = False) -> tuple[str, float]:
        """Return the slowest lane and its seconds; at once means without fitting anything."""
        times = self._times(demand, at_once=at_once)
        slowest = max(times, key=lambda lane: times[lane])
        return slowest.name, times[slowest]

    def _busy(self, demand: Demand, *, at_once: bool = False) -> frozenset[str]:
        """Return what a demand keeps busy, the slowest lane's first of all."""
        times = self._times(demand, at_once=at_once)
        least_s = _BUSY_PART * max(times.values())
        return frozenset().union(*(lane.shared for lane, s in times.items() if s >= least_s))

    def _times(self, demand: Demand, *, at_once: bool) -> dict[_Lane, float]:
        times = {}
        for lane in _lanes(demand, self._lent):
            fit = self._fit(lane.name)
            seconds = fit.seconds_at_once if at_once else fit.seconds
            taken_s = seconds(tensors=demand.tensors, size_bytes=lane.size_bytes)
            times[lane] = max(taken_s, _SECONDS_MIN)  # Times are divided by each other.
        return times

    def _fit(self, lane: str) -> LaneFit:
        """Return a lane's fit; a new GPU's starts where another GPU's is."""
        if lane not in self._fits:
            alike = (fit for known, fit in self._fits.items() if _kind(known) == _kind(lane))
            learned = next((fit for fit in alike if fit.samples), None)
            belief = self._prior(lane) if learned is None else learned.as_prior()
            self._fits[lane] = LaneFit(belief)
        return self._fits[lane]

    def _prior(self, lane: str) -> Prior:
        """Return what is believed of a lane: no more than what is known of its disk or link."""
        prior = _prior(lane)
        source, rate = _kind(lane)[0], self._rates.get(_bound(lane))
        if rate is None or source not in {DISK, CACHE, HOST}:
            return prior
        return replace(prior, bytes_per_s=min(rate, prior.bytes_per_s) if source == CACHE else rate)


def _lanes(demand: Demand, lent: Mapping[str, Sequence[str]]) -> list[_Lane]:
    """Return the lanes of a demand.

    The disk is read once for all GPUs; every link carries its GPU's part of all sources, and links
    that GPUs lend each other all of theirs. What comes from memory shares a link, so it counts for
    the slower of its sources.
    """
    marks = _CODED if demand.coded and demand.gpus else ""
    destinations = demand.gpus or {CPU: demand.size_bytes}
    total = sum(destinations.values()) or 1
    first = next(iter(destinations))
    lanes: dict[str, _Lane] = {}
    from_memory = {
        source: size for source, size in demand.sources.items() if source != DISK and size
    }
    if disk_bytes := demand.sources.get(DISK):
        name = f"{DISK}{_SEPARATOR}{first}{marks}"
        lanes[name] = _Lane(name, disk_bytes, frozenset({DISK}))
    slower = max(from_memory, key=lambda source: (from_memory[source], source), default=HOST)
    for destination, size_bytes in destinations.items():
        if not from_memory and lanes:
            continue
        neighbours = () if slower == DEVICE else lent.get(destination, ())
        links = sorted({destination, *neighbours})
        by = f"{_LENT}{len(links)}" if len(links) > 1 else ""
        name = f"{slower}{_SEPARATOR}{links[0]}{by}{marks}"
        known = lanes.get(name, _Lane(name, 0, frozenset()))
        part = known.size_bytes + sum(from_memory.values()) * size_bytes // total
        lanes[name] = _Lane(name, part, known.shared.union(links))
    return list(lanes.values())


def _mixture(demand: Demand) -> str | None:
    """Return what names a load with several sources or destinations; None for a pure one."""
    total = demand.size_bytes
    large = [source for source, size in demand.sources.items() if size > (1 - PURE_PART) * total]
    pure = len(large) <= 1 or max(demand.sources.values()) >= PURE_PART * total
    if pure and len(demand.gpus) <= 1:
        return None
    return f"{'+'.join(sorted(large))}{_SEPARATOR}{len(demand.gpus)}"


def _calls(demand: Demand) -> str:
    """Return the lane of a load's calls: one that reads has files to open and reads to plan."""
    if demand.decodes_on_host:
        return f"{_CALLS}{_SEPARATOR}{CPU}{_CODED}"
    source = _READING if demand.reads else _CALLS
    destination = _MAPPED if demand.mapped else "gpu" if demand.gpus else CPU
    return f"{source}{_SEPARATOR}{destination}"


def _fills_same(one: Running, demand: Demand) -> bool:
    """Whether a running load reads the model that another one would read: only one may."""
    return one.demand.model == demand.model and one.demand.reads and demand.reads


def _kind(lane: str) -> tuple[str, str, str]:
    """Return what lanes have in common that differ by their GPU alone."""
    source, _, destination = lane.partition(_SEPARATOR)
    name, _, marks = destination.partition("+")
    return source, name if name in {CPU, _MAPPED} else "gpu", marks


def _bound(lane: str) -> str:
    """Return what bounds a lane: the disk, the host's memory, or a GPU's link."""
    source, _, destination = lane.partition(_SEPARATOR)
    return DISK if source == DISK else destination.partition("+")[0]


def _prior(lane: str) -> Prior:
    source, destination, marks = _kind(lane)
    if (source, destination) == (_CALLS, CPU) and marks:
        return _DECODING
    return _PRIORS[source, destination]
