"""Estimates on simulated machines: what they learn, and what running loads do to the next one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import Phase, given, settings, strategies as st

from sllm_store.server.estimate import CACHE, DEVICE, DISK, HOST, Demand, Estimator
from sllm_store.server.lane_fit import Sample

GB = 10**9
UNSHRUNK = [phase for phase in Phase if phase != Phase.shrink]  # It would take minutes.
MODELS = {"a": (16 * GB, 291), "b": (4 * GB, 20_000), "c": (1 * GB, 300), "d": (8 * GB, 1000)}


@dataclass
class Machine:
    """Loads one at a time in simulated time: reads and copies overlap, the slowest bounds."""

    disk: float = 4e9
    cache: float = 45e9
    link: float = 55e9
    device: float = 2e12
    fixed_s: float = 0.002
    call_s: float = 0.006
    tensor_s: float = 2e-6
    noise: float = 0.01
    random: Random = field(default_factory=lambda: Random(0))
    now_s: float = 0.0

    def clock(self) -> float:
        return self.now_s

    def transfer_s(self, demand: Demand) -> float:
        size = dict.fromkeys((DISK, CACHE, HOST, DEVICE), 0) | dict(demand.sources)
        memory_s = size[CACHE] / self.cache + size[HOST] / self.link + size[DEVICE] / self.device
        if not demand.gpus:
            memory_s = size[CACHE] / self.cache
        exact = self.fixed_s + max(size[DISK] / self.disk, memory_s)
        return exact * max(0.5, self.random.gauss(1, self.noise))

    def load(self, estimator: Estimator, demand: Demand) -> tuple[float, float]:
        """Return what was estimated before, and what it took."""
        estimated_s = estimator.estimate(demand).seconds
        started_s = self.now_s
        call_s = self.call_s + demand.tensors * self.tensor_s
        self.now_s += call_s
        if demand.reads or demand.gpus:  # What is in the host's memory is mapped by the host.
            running = estimator.begin(demand)
            self.now_s += self.transfer_s(demand)
            estimator.finish(running, demand.sources)
        estimator.calls_took(demand, call_s)
        return estimated_s, self.now_s - started_s


def demand(model: str, *, gpu: bool = True, **parts: float) -> Demand:
    """A load of a model, by the part of it that each source has."""
    size_bytes, tensors = MODELS[model]
    return Demand(
        model=model,
        sources={source: int(size_bytes * part) for source, part in parts.items()},
        gpus={"gpu0": size_bytes} if gpu else {},
        tensors=tensors,
    )


KINDS: list[tuple[bool, dict[str, float]]] = [
    *((gpu, {source: 1.0}) for gpu in (True, False) for source in (DISK, CACHE, HOST)),
    *((gpu, {DISK: 0.5, CACHE: 0.5}) for gpu in (True, False)),
    (True, {DEVICE: 1.0}),
]


def random_demand(random: Random) -> Demand:
    gpu, parts = random.choice(KINDS)
    return demand(random.choice(list(MODELS)), gpu=gpu, **parts)


def calibrate(machine: Machine, estimator: Estimator) -> None:
    """Load three models in every way."""
    for model in "abd":
        for gpu, parts in KINDS:
            machine.load(estimator, demand(model, gpu=gpu, **parts))


def run(machine: Machine, estimator: Estimator, count: int, random: Random) -> list[float]:
    """Return the relative errors of so many loads."""
    errors = []
    for _ in range(count):
        estimated_s, took_s = machine.load(estimator, random_demand(random))
        errors.append(abs(estimated_s / took_s - 1))
    return errors


@given(
    disk=st.floats(3e8, 1.5e10),
    cache=st.floats(4e9, 8e10),
    link=st.floats(1e10, 6e10),
    fixed_s=st.floats(0.0005, 0.005),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=12, deadline=None, phases=UNSHRUNK)
def test_after_three_loads_of_each_kind_fifty_are_estimated_well(seed: int, **rates: float) -> None:
    random = Random(seed)
    machine = Machine(random=random, **rates)
    estimator = Estimator(machine.clock)
    calibrate(machine, estimator)
    errors = run(machine, estimator, 50, random)
    assert statistics.median(errors) <= 0.05
    assert max(errors) <= 0.2


@given(seed=st.integers(0, 2**32), factor=st.floats(0.3, 3))
@settings(max_examples=8, deadline=None, phases=UNSHRUNK)
def test_a_disk_that_changes_is_learned_again(seed: int, factor: float) -> None:
    random = Random(seed)
    machine = Machine(random=random)
    estimator = Estimator(machine.clock)
    calibrate(machine, estimator)
    machine.disk *= factor
    for _ in range(8):
        machine.load(estimator, demand("d", disk=1.0))
    estimated_s, took_s = machine.load(estimator, demand("a", disk=1.0))
    assert estimated_s == pytest.approx(took_s, rel=0.15)


def test_a_disk_that_drifts_is_followed_whatever_is_read_from_it() -> None:
    random = Random(3)
    machine = Machine(random=random)
    estimator = Estimator(machine.clock)
    calibrate(machine, estimator)
    errors = []
    for number in range(60):
        machine.disk = min(max(machine.disk * random.gauss(1, 0.04), 2e9), 8e9)
        part = 0.5 if number % 2 else 1.0
        wanted = demand(random.choice("abd"), disk=part, cache=1 - part)
        estimated_s, took_s = machine.load(estimator, wanted)
        errors.append(abs(estimated_s / took_s - 1))
    assert statistics.median(errors) <= 0.05
    assert max(errors) <= 0.25


def test_before_the_first_load_there_is_a_guess_and_it_says_so() -> None:
    estimate = Estimator(lambda: 0.0).estimate(demand("a", disk=1.0))
    assert 1 < estimate.seconds < 60
    assert (estimate.samples, estimate.loads_ahead, estimate.wait_s) == (0, 0, 0.0)


@given(
    disk=st.floats(2e8, 2e10),
    link=st.floats(5e9, 4e11),
    model=st.sampled_from(["a", "d"]),
    source=st.sampled_from([DISK, HOST]),
)
def test_the_first_load_is_expected_at_what_its_disk_or_link_was_measured_to_do(
    disk: float, link: float, model: str, source: str
) -> None:
    machine = Machine(disk=disk, link=link, noise=0.0)
    estimator = Estimator(machine.clock, rates={DISK: disk, "gpu0": link})
    wanted = demand(model, **{source: 1.0}, gpu=True)
    estimated_s, took_s = machine.load(estimator, wanted)
    assert estimated_s == pytest.approx(took_s, rel=0.05, abs=0.01)


def test_the_page_cache_is_expected_to_be_no_faster_than_the_link() -> None:
    slow = Estimator(lambda: 0.0, rates={"gpu0": 1e9}).estimate(demand("a", cache=1.0)).seconds
    usual = Estimator(lambda: 0.0).estimate(demand("a", cache=1.0)).seconds
    fast = Estimator(lambda: 0.0, rates={"gpu0": 1e12}).estimate(demand("a", cache=1.0)).seconds
    assert slow > 16
    assert usual == fast


def test_a_load_that_its_lane_holds_for_nothing_is_learned_from_and_estimated() -> None:
    """The lane has seen that tensors alone take time, and the load has buffers alone."""
    for source in (DISK, CACHE):
        seen = [Sample(1000 * n, GB // n, 0.05 * n - 0.03) for n in range(1, 9)]
        machine = Machine()
        estimator = Estimator(machine.clock, {f"{source}>gpu0": seen})
        odd = Demand(model="odd", sources={source: 1000}, gpus={"gpu0": 1000}, tensors=0)
        for _ in range(3):
            estimated_s, took_s = machine.load(estimator, odd)
            assert 0 < estimated_s < 1
            assert took_s > 0


def calibrated() -> tuple[Machine, Estimator]:
    machine = Machine(noise=0.0)
    estimator = Estimator(machine.clock)
    calibrate(machine, estimator)
    return machine, estimator


def test_loads_that_run_share_what_bounds_them() -> None:
    machine, estimator = calibrated()
    alone = estimator.estimate(demand("d", disk=1.0))
    estimator.begin(demand("a", disk=1.0))
    beside = estimator.estimate(demand("d", disk=1.0))
    assert beside.seconds == pytest.approx(2 * alone.seconds, rel=0.05)
    assert beside.loads_ahead == 1
    machine.now_s += 3.0  # Three of its four seconds.
    later = estimator.estimate(demand("d", disk=1.0))
    assert later.wait_s == pytest.approx(1.0, rel=0.1)


def test_a_load_that_runs_slower_than_expected_is_waited_for_by_its_own_rate() -> None:
    machine, estimator = calibrated()
    arrived = 0.0
    estimator.begin(demand("a", disk=1.0), lambda: arrived)
    machine.now_s += 3.0
    expected_s = estimator.estimate(demand("d", disk=1.0)).wait_s
    assert expected_s == pytest.approx(1.0, rel=0.1)
    arrived = 0.25  # Of what takes four seconds otherwise.
    assert estimator.estimate(demand("b", disk=1.0)).wait_s == pytest.approx(1.0, rel=0.1)
    assert estimator.estimate(demand("c", disk=1.0)).wait_s == pytest.approx(0.25, rel=0.1)
    arrived = 0.9
    assert estimator.estimate(demand("a", disk=1.0)).wait_s == pytest.approx(1 / 3, rel=0.1)


def test_a_load_of_the_disk_does_not_wait_for_one_over_the_link() -> None:
    _, estimator = calibrated()
    alone = estimator.estimate(demand("d", disk=1.0)).seconds
    estimator.begin(demand("a", host=1.0))
    assert estimator.estimate(demand("d", disk=1.0)).seconds == pytest.approx(alone)


def test_a_model_that_is_being_read_is_waited_for_and_copied_then() -> None:
    _, estimator = calibrated()
    reading = estimator.estimate(demand("a", disk=1.0)).seconds
    copying = estimator.estimate(demand("a", host=1.0)).seconds
    estimator.begin(demand("a", disk=1.0))
    behind = estimator.estimate(demand("a", disk=1.0))
    assert behind.seconds == pytest.approx(reading + copying, rel=0.05)
    assert behind.loads_ahead == 1


def test_what_loads_took_side_by_side_is_learned_as_if_each_was_alone() -> None:
    machine, estimator = calibrated()
    for _ in range(10):
        together = [estimator.begin(demand("d", disk=1.0)) for _ in range(2)]
        machine.now_s += 2 * machine.transfer_s(demand("d", disk=1.0))
        for one in together:
            estimator.finish(one, {DISK: 8 * GB})
    took_s = machine.transfer_s(demand("d", disk=1.0))
    assert estimator.estimate(demand("d", disk=1.0)).seconds == pytest.approx(took_s, rel=0.1)


def test_a_load_that_failed_teaches_nothing_and_is_gone() -> None:
    machine, estimator = calibrated()
    before = estimator.estimate(demand("a", disk=1.0))
    running = estimator.begin(demand("a", disk=1.0))
    machine.now_s += 0.001
    estimator.finish(running, None)
    assert estimator.estimate(demand("a", disk=1.0)) == before


def test_where_the_bytes_did_come_from_counts_not_where_they_were_expected() -> None:
    machine, estimator = calibrated()
    disk_s = estimator.estimate(demand("a", disk=1.0)).seconds
    for _ in range(5):
        running = estimator.begin(demand("a", disk=1.0))
        machine.now_s += machine.transfer_s(demand("a", cache=1.0))
        estimator.finish(running, {CACHE: 16 * GB})
    assert estimator.estimate(demand("a", disk=1.0)).seconds == pytest.approx(disk_s, rel=0.02)


def test_another_gpu_begins_where_the_first_one_is() -> None:
    _, estimator = calibrated()
    known = estimator.estimate(demand("a", host=1.0))
    other = Demand(model="a", sources={HOST: 16 * GB}, gpus={"gpu1": 16 * GB}, tensors=291)
    assert estimator.estimate(other).seconds == pytest.approx(known.seconds, rel=0.02)


def test_calls_of_loads_that_read_are_learned_apart_from_those_of_others() -> None:
    """Planning 20,000 reads takes longer than copying what is in the pool."""
    machine, estimator = calibrated()
    for _ in range(3):
        estimator.calls_took(demand("b", host=1.0), 0.006)
    before_s = estimator.estimate(demand("b", host=1.0)).seconds
    for _ in range(6):
        estimator.calls_took(demand("b", cache=1.0), 0.1)
    assert estimator.estimate(demand("b", host=1.0)).seconds == before_s
    took_s = machine.transfer_s(demand("b", cache=1.0)) + 0.1
    assert estimator.estimate(demand("b", cache=1.0)).seconds == pytest.approx(took_s, rel=0.05)


def test_a_half_cached_load_is_believed_from_what_the_disk_does_for_others() -> None:
    """Before any like it, and also after the disk was three times slower with those before."""
    machine, estimator = calibrated()
    fresh = Estimator(machine.clock)
    for _ in range(3):
        for model in "ab":
            machine.load(fresh, demand(model, disk=1.0))
            machine.load(fresh, demand(model, cache=1.0))
    estimated_s, took_s = machine.load(fresh, demand("d", disk=0.5, cache=0.5))
    assert estimated_s == pytest.approx(took_s, rel=0.05)
    usual = machine.disk
    machine.disk = usual / 3
    for model in "ab":
        machine.load(estimator, demand(model, disk=0.5, cache=0.5))
        machine.load(estimator, demand(model, disk=1.0))
    machine.disk = usual
    for model in "abd":
        for _ in range(2):
            machine.load(estimator, demand(model, disk=1.0))
    estimated_s, took_s = machine.load(estimator, demand("a", disk=0.5, cache=0.5))
    assert estimated_s == pytest.approx(took_s, rel=0.15)


def test_half_cached_loads_teach_what_the_disk_does() -> None:
    machine, estimator = calibrated()
    machine.disk /= 2
    for _ in range(5):
        for model in "bd":
            machine.load(estimator, demand(model, disk=0.5, cache=0.5))
    estimated_s, took_s = machine.load(estimator, demand("a", disk=1.0))
    assert estimated_s == pytest.approx(took_s, rel=0.1)


def test_a_split_over_two_gpus_takes_as_long_as_the_larger_part() -> None:
    _, estimator = calibrated()
    halves = {"gpu0": 8 * GB, "gpu1": 8 * GB}
    split = Demand(model="a", sources={HOST: 16 * GB}, gpus=halves, tensors=291)
    whole = estimator.estimate(demand("a", host=1.0)).seconds
    assert estimator.estimate(split).seconds == pytest.approx(whole / 2, rel=0.1)


def test_what_was_remembered_predicts_the_same() -> None:
    machine, estimator = calibrated()
    again = Estimator(machine.clock, estimator.remember())
    for source in (DISK, CACHE, HOST, DEVICE):
        wanted = demand("a", gpu=True, **{source: 1.0})
        known, found = estimator.estimate(wanted), again.estimate(wanted)
        assert found.samples == known.samples
        assert found.seconds == pytest.approx(known.seconds, rel=0.03)


def test_a_disk_that_is_slow_now_is_remembered_as_it_is() -> None:
    machine, estimator = calibrated()
    machine.disk /= 2
    for _ in range(6):
        machine.load(estimator, demand("d", disk=1.0))
    known = estimator.estimate(demand("a", disk=1.0)).seconds
    again = Estimator(machine.clock, estimator.remember())
    assert again.estimate(demand("a", disk=1.0)).seconds == pytest.approx(known, rel=0.05)


def test_a_model_without_bytes_takes_the_time_of_its_calls() -> None:
    _, estimator = calibrated()
    empty = Demand(model="e", sources={}, tensors=1)
    assert 0 < estimator.estimate(empty).seconds < 0.05


def test_what_a_client_decodes_is_learned_apart_from_what_it_maps() -> None:
    _, estimator = calibrated()
    plain = Demand(model="p", sources={HOST: GB}, arena_bytes=GB, tensors=291)
    coded = replace(plain, coded=True, decodes_on_host=True)
    mapped_s = estimator.estimate(plain).seconds
    assert estimator.estimate(coded).samples == 0
    for _ in range(3):
        estimator.calls_took(coded, 0.5)
    assert estimator.estimate(coded).seconds == pytest.approx(0.5, rel=0.05)
    assert estimator.estimate(coded).samples == 3
    assert estimator.estimate(plain).seconds == mapped_s


def test_reading_compressed_bytes_into_the_pool_is_like_reading_any() -> None:
    _, estimator = calibrated()
    plain = demand("a", gpu=False, disk=1.0)
    coded = replace(plain, coded=True)
    assert estimator.estimate(coded) == estimator.estimate(plain)
