"""A lane's fit: few loads overrule a guess, one bad load does not overrule many."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from sllm_store.server.lane_fit import WINDOW, LaneFit, Prior, Sample

GUESS = Prior(fixed_s=0.003, per_tensor_s=1e-6, bytes_per_s=2e9)
GB = 10**9


def took(
    size_bytes: int, bytes_per_s: float, *, tensors: int = 300, fixed_s: float = 0.01
) -> Sample:
    return Sample(tensors, size_bytes, fixed_s + tensors * 2e-6 + size_bytes / bytes_per_s)


def error(fit: LaneFit, sample: Sample) -> float:
    seconds = fit.seconds(tensors=sample.tensors, size_bytes=sample.size_bytes)
    return abs(seconds / sample.seconds - 1)


def test_before_the_first_load_the_guess_holds() -> None:
    assert LaneFit(GUESS).seconds(tensors=1000, size_bytes=2 * GB) == pytest.approx(1.004)


def test_two_loads_are_believed_that_took_far_longer_than_anybody_thought() -> None:
    fit = LaneFit(GUESS)
    for _ in range(2):
        fit.add(Sample(300, 12_000_000, 0.4))
    assert fit.seconds(tensors=300, size_bytes=12_000_000) > 0.3


@given(
    surprise=st.floats(1 / 20, 20),
    offs=st.lists(st.floats(0.9, 1.1), min_size=3, max_size=WINDOW),
    tensors=st.integers(1, 30_000),
    size_bytes=st.integers(0, 200 * GB),
)
def test_loads_alike_are_expected_to_take_what_they_took(
    surprise: float, offs: list[float], tensors: int, size_bytes: int
) -> None:
    """Also where that is twenty times what was believed, or a twentieth."""
    fit = LaneFit(GUESS)
    seconds = surprise * fit.seconds(tensors=tensors, size_bytes=size_bytes)
    for off in offs:
        fit.add(Sample(tensors, size_bytes, seconds * off))
    found = fit.seconds(tensors=tensors, size_bytes=size_bytes)
    assert 0.6 * min(offs) * seconds <= found <= 1.4 * max(offs) * seconds


def test_one_load_is_enough_to_predict_its_like() -> None:
    fit = LaneFit(GUESS)
    sample = took(16 * GB, 50e9)
    fit.add(sample)
    assert error(fit, sample) < 0.02


@given(
    bytes_per_s=st.floats(2e8, 4e11),
    fixed_s=st.floats(0.0005, 0.05),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=20, deadline=None)
def test_sizes_that_were_never_seen_are_predicted(
    bytes_per_s: float, fixed_s: float, seed: int
) -> None:
    random = Random(seed)
    fit = LaneFit(GUESS)
    for _ in range(12):
        size_bytes = int(10 ** random.uniform(8, 10.5))
        exact = took(size_bytes, bytes_per_s, fixed_s=fixed_s)
        fit.add(Sample(exact.tensors, exact.size_bytes, exact.seconds * random.gauss(1, 0.01)))
    for size_bytes in (GB // 2, 3 * GB, 20 * GB):
        assert error(fit, took(size_bytes, bytes_per_s, fixed_s=fixed_s)) < 0.1


def test_more_bytes_or_tensors_never_take_less_time() -> None:
    fit = LaneFit(GUESS)
    fit.add(Sample(20_000, GB, 0.02))
    fit.add(Sample(300, 16 * GB, 0.01))
    times = [fit.seconds(tensors=300, size_bytes=size * GB) for size in range(0, 40, 4)]
    assert times == sorted(times)
    assert times[0] >= 0


def test_one_slow_load_changes_little() -> None:
    fit = LaneFit(GUESS)
    usual = took(4 * GB, 4e9)
    for _ in range(8):
        fit.add(usual)
    fit.add(Sample(usual.tensors, usual.size_bytes, usual.seconds * 10))
    assert error(fit, usual) < 0.05


def test_a_disk_that_became_slower_is_believed_after_a_few_loads() -> None:
    fit = LaneFit(GUESS)
    for _ in range(WINDOW):
        fit.add(took(4 * GB, 4e9))
    slower = took(4 * GB, 2.5e9)
    for _ in range(5):
        fit.add(slower)
    assert error(fit, slower) < 0.1


def test_times_that_scatter_do_not_make_tensors_expensive() -> None:
    """Loads of the model with many tensors happened to come when the disk was slow."""
    fit = LaneFit(GUESS)
    for factor in (1.6, 1.3, 1.15, 0.95):
        many = took(4 * GB, 2.5e9, tensors=20_000)
        few = took(4 * GB, 2.5e9)
        fit.add(Sample(many.tensors, many.size_bytes, many.seconds * factor))
        fit.add(Sample(few.tensors, few.size_bytes, few.seconds * (2 - factor) ** 0.3))
    assert error(fit, took(4 * GB, 2.5e9, tensors=20_000)) < 0.12


def test_what_it_learned_is_a_belief_about_a_lane_like_it() -> None:
    fit = LaneFit(GUESS)
    for size in (1, 2, 8, 16):
        fit.add(took(size * GB, 50e9))
    other = LaneFit(fit.as_prior())
    assert error(other, took(4 * GB, 50e9)) < 0.05


def test_only_the_last_loads_are_kept() -> None:
    fit = LaneFit(GUESS, [took(GB, 1e9)] * 100)
    assert len(fit.samples) == WINDOW
