"""The search for how a disk is best asked, against simulated disks."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from sllm_store import native

if TYPE_CHECKING:
    from collections.abc import Callable

    Curve = Callable[[int, int, int], float]

KIB, MIB, GB = 1 << 10, 1 << 20, 10**9
STEP = 4 * MIB
# An H200 machine's virtual disk, GB/s by requests in flight and size, one thread (libaio sweep).
VIRTIO = {
    256 * KIB: {16: 3.45, 32: 4.0, 64: 4.25, 128: 3.8},
    512 * KIB: {16: 4.15, 32: 4.3, 64: 4.05, 128: 3.95},
    1 * MIB: {8: 3.9, 16: 4.53, 32: 4.25, 64: 4.3},
    2 * MIB: {8: 3.7, 16: 3.8, 32: 3.65},
}


def virtio(threads: int, depth: int, size: int) -> float:
    measured = VIRTIO.get(size, {})
    rate = measured.get(depth, 2.5)
    return rate * GB * (1, 0.95, 0.9, 0.75)[threads.bit_length() - 1]


def local_array(threads: int, depth: int, size: int) -> float:
    """Four NVMe drives behind deep queues; one thread submits at most 16 GB/s."""
    latency_s = 90e-6 + size / (4 * GB)
    return min(45 * GB, threads * 16 * GB, depth * size / latency_s)


def spinning(threads: int, depth: int, size: int) -> float:
    """A disk whose heads lose time with every request more that they have to choose from."""
    seeks = 0.002 * (depth - 1) + 0.004 * (threads - 1)
    return 0.25 * GB * size / (size + 0.3 * MIB) / (1 + seeks * 10)


def remote(threads: int, depth: int, size: int) -> float:
    """A file server far away: everything in flight helps, up to its link."""
    return min(3 * GB, depth * size / (0.004 + size / (1 * GB))) * min(1, 0.7 + 0.1 * threads)


def shallow(threads: int, depth: int, size: int) -> float:
    """A drive with a small cache of its own: more than 4 MiB in flight throws it off."""
    in_flight = depth * size
    base = min(1.0, in_flight / (4 * MIB)) * 2 * GB
    return (
        base / (1 + max(0.0, math.log2(in_flight / (4 * MIB))) * 0.2) / (1 + 0.05 * (threads - 1))
    )


DISKS = {
    "virtio": virtio,
    "local array": local_array,
    "spinning": spinning,
    "remote": remote,
    "shallow": shallow,
}
STARTS = [(1, 16, MIB), (2, 64, MIB), (1, 4, 2 * MIB), (8, 64, 256 * KIB)]


def allowed() -> list[tuple[int, int, int]]:
    return [
        (threads, depth, size)
        for threads in (1, 2, 4, 8)
        for depth in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        for size in (128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB)
        if threads <= depth and depth * size <= 64 * MIB
    ]


class Simulation:
    """A transfer from a disk whose rate depends on the tuner's setting, with noise."""

    def __init__(self, tuner: native.Tuner, curve: Curve, *, noise: float, seed: int) -> None:
        self.tuner = tuner
        self._curve = curve
        self._noise = noise
        self._random = random.Random(seed)
        self._now_s = 0.0
        self.changes = 0
        self.bytes = 0

    def run(self, windows: int) -> None:
        self.tuner.begin(16)
        until = self.tuner.windows + windows
        best = self.tuner.best
        seen, factor = -1, 1.0
        while self.tuner.windows < until:
            if self.tuner.windows != seen:
                seen = self.tuner.windows
                factor = self._random.gauss(1.0, self._noise)
            self._now_s += STEP / (self._curve(*self.tuner.setting) * max(factor, 0.5))
            self.bytes += STEP
            self.tuner.add(STEP, self._now_s)
            if self.tuner.best != best:
                best = self.tuner.best
                self.changes += 1
        self.tuner.end()

    def share(self) -> float:
        """How much of the best possible rate the best setting has."""
        return self._curve(*self.tuner.best) / max(self._curve(*point) for point in allowed())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", DISKS)
def test_it_finds_nearly_the_best_setting_of_every_disk(
    name: str, start: tuple[int, int, int]
) -> None:
    tuner = native.Tuner(queued=True, start=start)
    simulation = Simulation(tuner, DISKS[name], noise=0.0, seed=0)
    simulation.run(250)
    assert simulation.share() > 0.95, tuner.best
    assert tuner.settled


@pytest.mark.parametrize("name", DISKS)
def test_noise_does_not_lead_it_far_astray(name: str) -> None:
    shares = []
    for seed in range(8):
        tuner = native.Tuner(queued=True, start=(1, 16, MIB))
        simulation = Simulation(tuner, DISKS[name], noise=0.03, seed=seed)
        simulation.run(200)
        shares.append(simulation.share())
    assert sorted(shares)[1] > 0.88, shares
    assert sum(shares) / len(shares) > 0.93, shares


def test_it_does_not_wander_among_equals() -> None:
    tuner = native.Tuner(queued=True, start=(1, 16, MIB))
    simulation = Simulation(tuner, lambda *_: 4e9, noise=0.03, seed=1)
    simulation.run(500)
    assert simulation.changes <= 6


def test_learning_costs_a_first_load_little() -> None:
    """16 GB from a disk whose best setting is the start: trials may cost two percent."""
    tuner = native.Tuner(queued=True, start=(1, 16, MIB))
    simulation = Simulation(tuner, virtio, noise=0.0, seed=0)
    while simulation.bytes < 16 * GB:
        simulation.run(1)
    ideal_s = simulation.bytes / virtio(1, 16, MIB)
    assert simulation._now_s < 1.04 * ideal_s


def test_a_disk_that_changes_is_learnt_again() -> None:
    tuner = native.Tuner(queued=True, start=(1, 16, MIB))
    Simulation(tuner, shallow, noise=0.0, seed=0).run(150)
    assert tuner.settled
    later = Simulation(tuner, remote, noise=0.0, seed=0)
    later.run(600)
    assert later.share() > 0.9


def test_slow_disks_have_windows_too() -> None:
    tuner = native.Tuner(queued=True, start=(1, 4, 2 * MIB))
    simulation = Simulation(tuner, lambda *_: 50e6, noise=0.0, seed=0)
    simulation.run(3)
    assert simulation.bytes < 400 * MIB
    assert tuner.rate == pytest.approx(50e6, rel=0.1)


def test_what_was_learnt_goes_on_where_it_ended() -> None:
    tuner = native.Tuner(queued=True, start=(2, 64, MIB))
    Simulation(tuner, virtio, noise=0.0, seed=0).run(150)
    again = native.Tuner(queued=True, start=tuner.best, rate=tuner.rate, refused=tuner.refused)
    assert again.settled
    assert (again.best, again.rate, again.refused) == (tuner.best, tuner.rate, tuner.refused)
    assert (again.setting, again.windows) == (tuner.best, 0)


def test_refused_settings_that_are_no_neighbours_are_forgotten() -> None:
    tuner = native.Tuner(
        queued=True,
        start=(1, 16, MIB),
        refused=[(8, 128, 128 * KIB, 0.5), (1, 32, MIB, 0.9), (1, 32, MIB, 0.9)],
    )
    assert tuner.refused == [(1, 32, MIB, 0.9)]


def test_threads_stay_within_what_the_transfer_has() -> None:
    tuner = native.Tuner(queued=True, start=(4, 64, MIB))
    tuner.begin(2)
    now_s = 0.0
    for _ in range(2000):
        now_s += 0.001
        assert not tuner.add(STEP, now_s)
        assert tuner.setting == (2, 64, MIB)
    tuner.end()
    assert tuner.windows == 0, "a rate of two threads is no rate of four"
    assert tuner.best == (4, 64, MIB)


def test_without_queues_the_threads_are_the_depth() -> None:
    tuner = native.Tuner(queued=False, start=(8, 8, 2 * MIB))
    simulation = Simulation(
        tuner, lambda t, d, s: min(t, 6) * 0.5e9 * s / (s + MIB), noise=0, seed=0
    )
    simulation.run(100)
    threads, depth, _ = tuner.best
    assert threads == depth
    tuner.begin(2)
    assert tuner.setting[:2] == (2, 2)


def test_transfers_side_by_side_teach_nothing() -> None:
    tuner = native.Tuner(queued=True, start=(1, 16, MIB))
    tuner.begin(16)
    tuner.begin(16)
    assert not any(tuner.add(STEP, 0.001 * i) for i in range(2000))
    assert tuner.windows == 0
    tuner.end()
    for i in range(2000):
        tuner.add(STEP, 10 + 0.001 * i)
    assert tuner.windows > 0


def test_an_interruption_spoils_its_window_alone() -> None:
    tuner = native.Tuner(queued=True, start=(1, 16, MIB))
    tuner.begin(16)
    now_s = 0.0
    for _ in range(500):
        now_s += 0.001
        tuner.add(STEP, now_s)
        tuner.interrupt()
    assert tuner.windows == 0
    for _ in range(500):
        now_s += 0.001
        tuner.add(STEP, now_s)
    assert tuner.windows > 0
    assert tuner.rate == pytest.approx(STEP / 0.001, rel=0.02)


def test_one_that_does_not_learn_keeps_its_setting() -> None:
    tuner = native.Tuner(queued=True, start=(2, 8, 512 * KIB), learns=False)
    tuner.begin(16)
    assert not any(tuner.add(STEP, 0.001 * i) for i in range(2000))
    assert (tuner.setting, tuner.windows, tuner.rate) == ((2, 8, 512 * KIB), 0, 0.0)


@pytest.mark.parametrize(
    ("queued", "start", "rate"),
    [
        (True, (0, 16, MIB), 0.0),
        (True, (1, 0, MIB), 0.0),
        (True, (1, 16, 4 * KIB), 0.0),
        (True, (1, 16, 1 << 40), 0.0),
        (True, (1, 256, 2 * MIB), 0.0),
        (True, (16, 16, MIB), 0.0),
        (True, (4, 2, MIB), 0.0),
        (False, (4, 8, MIB), 0.0),
        (True, (1, 16, MIB), -1.0),
        (True, (1, 16, MIB), float("nan")),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(
    start: tuple[int, int, int], rate: float, *, queued: bool
) -> None:
    with pytest.raises(ValueError, match=r"setting|search"):
        native.Tuner(queued=queued, start=start, rate=rate)


@settings(max_examples=30, deadline=None)
@given(
    start=st.sampled_from(allowed()),
    peak=st.sampled_from(allowed()),
    seed=st.integers(0, 1000),
)
def test_settings_stay_in_bounds_and_rates_only_rise(
    start: tuple[int, int, int], peak: tuple[int, int, int], seed: int
) -> None:
    """On a smooth hill anywhere in the space, the best setting ends near its top."""

    def hill(threads: int, depth: int, size: int) -> float:
        distance = sum(
            abs(math.log2(a / b)) for a, b in zip((threads, depth, size), peak, strict=True)
        )
        return 8 * GB * 0.9**distance

    tuner = native.Tuner(queued=True, start=start)
    simulation = Simulation(tuner, hill, noise=0.0, seed=seed)
    rates = [hill(*tuner.best)]
    for _ in range(40):
        simulation.run(5)
        assert tuner.setting in allowed()
        rates.append(hill(*tuner.best))
    assert rates == sorted(rates)
    assert simulation.share() > 0.8


def test_a_trial_that_something_else_interrupts_does_not_stay() -> None:
    """A load whose copies hold its reads up now and then has no whole window to refuse one in."""
    tuner = native.Tuner(queued=True, start=(1, 16, MIB))
    tuner.begin(16)
    now_s = 0.0
    while tuner.setting == tuner.best:
        now_s += 0.001
        tuner.add(STEP, now_s)
    on_trial = tuner.setting
    assert tuner.interrupt()
    assert tuner.setting == tuner.best == (1, 16, MIB)
    assert not tuner.interrupt()
    while tuner.setting == tuner.best:
        now_s += 0.001
        tuner.add(STEP, now_s)
    assert tuner.setting == on_trial, "it is tried again when the best one was measured"
    tuner.end()


@pytest.mark.parametrize("start", [(8, 64, 256 * KIB), (1, 256, 128 * KIB), (4, 4, 2 * MIB)])
def test_what_suits_most_disks_is_tried_first_from_wherever_a_search_begins(
    start: tuple[int, int, int],
) -> None:
    tuner = native.Tuner(queued=True, start=start)
    simulation = Simulation(tuner, virtio, noise=0.0, seed=0)
    simulation.run(6)
    assert tuner.best == (1, 16, MIB)
