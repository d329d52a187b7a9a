"""Estimates on simulated machines: what they learn, and what running loads do to the next one."""

from __future__ import annotations

import statistics
from dataclasses import replace
from random import Random

import pytest
from hypothesis import Phase, given, settings, strategies as st

from sllm_store.server.estimate import CACHE, DEVICE, DISK, HOST, Demand, Estimator
from sllm_store.server.lane_fit import Sample
from tests.sllm_store.server.simulated_machine import GB, MODELS, Machine, demand

UNSHRUNK = [phase for phase in Phase if phase != Phase.shrink]  # It would take minutes.


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


def drain(jobs: list[tuple[float, str]], last: int) -> float:
    """Return when a job ends that shares a link with others; they are (seconds alone, GPU)."""
    left = [seconds for seconds, _ in jobs]
    now_s = 0.0
    while left[last] > 0:
        gpus = [gpu for (_, gpu), rest in zip(jobs, left, strict=True) if rest > 0]
        step_s = min(
            rest * gpus.count(gpu) for (_, gpu), rest in zip(jobs, left, strict=True) if rest > 0
        )
        now_s += step_s
        for index, (_, gpu) in enumerate(jobs):
            if left[index] > 0:
                left[index] = max(0.0, left[index] - step_s / gpus.count(gpu))
                left[index] *= left[index] > 1e-9
    return now_s


@given(
    running=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from(["gpu0", "gpu1", "gpu2"])), max_size=8
    ),
    gpu=st.sampled_from(["gpu0", "gpu1", "gpu2"]),
    size=st.integers(1, 40),
)
def test_a_load_behind_others_ends_as_simulated(
    running: list[tuple[int, str]], gpu: str, size: int
) -> None:
    """On links that are known exactly, whoever else loads to whichever GPU."""
    known = [Sample(300, n * GB, n * GB / 55e9) for n in range(1, 41, 3)]
    names = ["gpu0", "gpu1", "gpu2"]
    estimator = Estimator(lambda: 0.0, {f"{HOST}>{name}": known for name in names})

    def load(size_gb: int, name: str) -> Demand:
        return Demand(
            model="m", sources={HOST: size_gb * GB}, gpus={name: size_gb * GB}, tensors=300
        )

    alone_s = estimator.estimate(load(size, gpu)).seconds
    for size_gb, name in running:
        estimator.estimate(load(size_gb, name))
        estimator.begin(load(size_gb, name))
    jobs = [(size_gb * GB / 55e9, name) for size_gb, name in [*running, (size, gpu)]]
    found = estimator.estimate(load(size, gpu))
    expected_s = drain(jobs, len(running)) - size * GB / 55e9
    assert found.wait_s == pytest.approx(expected_s, rel=0.05, abs=0.002)
    assert found.seconds == pytest.approx(alone_s + expected_s, rel=0.05, abs=0.002)
    assert found.loads_ahead == sum(name == gpu for _, name in running)


def test_a_split_load_shares_the_links_of_all_its_gpus() -> None:
    _, estimator = calibrated()
    halves = {"gpu0": 8 * GB, "gpu1": 8 * GB}
    estimator.begin(Demand(model="s", sources={HOST: 16 * GB}, gpus=halves, tensors=291))

    def behind(gpu: str) -> int:
        other = Demand(model="a", sources={HOST: GB}, gpus={gpu: GB}, tensors=291)
        return estimator.estimate(other).loads_ahead

    assert [behind(gpu) for gpu in ("gpu0", "gpu1", "gpu2")] == [1, 1, 0]


def test_a_load_beside_one_on_each_of_its_links_is_half_as_fast() -> None:
    """Not a third: nobody shares with both of the others."""
    _, estimator = calibrated()
    halves = {"gpu0": 8 * GB, "gpu1": 8 * GB}
    split = Demand(model="s", sources={HOST: 16 * GB}, gpus=halves, tensors=291)
    alone_s = estimator.estimate(split).seconds
    for gpu in halves:
        estimator.begin(
            Demand(model="a", sources={HOST: 80 * GB}, gpus={gpu: 80 * GB}, tensors=291)
        )
    beside = estimator.estimate(split)
    assert beside.loads_ahead == 2
    assert beside.seconds == pytest.approx(2 * alone_s, rel=0.1)


def test_gpus_that_lend_each_other_their_links_have_one_lane_together() -> None:
    machine = Machine(noise=0.0, link=4 * 50e9)
    names = [f"gpu{index}" for index in range(4)]
    lent = {name: [other for other in names if other != name] for name in names}
    estimator = Estimator(machine.clock, rates=dict.fromkeys(names, 4 * 50e9), lent=lent)

    def load(size_gb: int, *gpus: str, coded: bool = False) -> Demand:
        return Demand(
            model="m",
            sources={HOST: size_gb * GB},
            gpus=dict.fromkeys(gpus, size_gb * GB // len(gpus)),
            tensors=300,
            coded=coded,
        )

    for size_gb in (4, 8, 16):
        machine.load(estimator, load(size_gb, "gpu0"))
    for wanted in (load(16, "gpu3"), load(32, *names), load(8, "gpu1", "gpu2")):
        estimated_s, took_s = machine.load(estimator, wanted)
        assert estimated_s == pytest.approx(took_s, rel=0.05)
    assert all("+lent4" in lane for lane in estimator.remember() if lane.startswith(HOST))
    estimator.begin(load(16, "gpu0"))
    assert estimator.estimate(load(16, "gpu3")).loads_ahead == 1
    assert estimator.estimate(load(16, "gpu3", coded=True)).loads_ahead == 1


def test_what_was_learned_of_lent_links_is_not_believed_of_one_alone() -> None:
    machine = Machine(noise=0.0, link=4 * 50e9)
    lending = Estimator(machine.clock, lent={"gpu0": ["gpu1", "gpu2", "gpu3"]})
    for _ in range(3):
        machine.load(lending, demand("a", host=1.0))
    alone = Estimator(machine.clock, lending.remember(), {"gpu0": 50e9})
    machine.link = 50e9
    estimated_s, took_s = machine.load(alone, demand("a", host=1.0))
    assert estimated_s == pytest.approx(took_s, rel=0.05)


def test_compressed_bytes_over_a_link_have_a_lane_of_their_own() -> None:
    """They take as long as they are decoded, which raw ones are not."""
    machine, estimator = calibrated()
    plain = demand("a", host=1.0)
    coded = replace(plain, model="z", sources={HOST: 11 * GB}, gpus={"gpu0": 11 * GB}, coded=True)
    before_s = estimator.estimate(plain).seconds
    link, machine.link = machine.link, 40e9
    for _ in range(4):
        machine.load(estimator, coded)
    estimated_s, took_s = machine.load(estimator, coded)
    assert estimated_s == pytest.approx(took_s, rel=0.05)
    machine.link = link
    assert estimator.estimate(plain).seconds == pytest.approx(before_s, rel=0.02)


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


def test_what_has_just_ended_counts_for_whoever_asks_next() -> None:
    now_s = 0.0
    estimator = Estimator(lambda: now_s)
    wanted = demand("a", gpu=True, **{HOST: 1.0})
    believed_s = estimator.estimate(wanted).seconds
    for asked in range(2):
        running = estimator.begin(wanted)
        now_s += 100 * believed_s
        estimator.finish(running, wanted.sources)
        assert estimator.estimate(wanted).samples == asked + 1
    assert estimator.estimate(wanted).seconds > 50 * believed_s
    running = estimator.begin(wanted)
    now_s += 100 * believed_s
    estimator.finish(running, wanted.sources)
    assert [len(samples) for samples in estimator.remember().values()] == [3]
