"""What bounds a load, and what is said about it, by arithmetic alone."""

from __future__ import annotations

import pytest

from sllm_store.cli.bench_bounds import (
    DECODING,
    DISK,
    LINK,
    OURS,
    PAGE_CACHE,
    Cargo,
    Limits,
    Timed,
    advise,
    compressible_part,
    find_bound,
    passed,
)

LIMITS = Limits(disk=4e9, page_cache=40e9, link=50e9)
TO_GPU = Cargo(stored_bytes=8_000_000_000, tensors=300, to_gpu=True, compressible_part=1.0)
TO_HOST = Cargo(stored_bytes=8_000_000_000, tensors=300, to_gpu=False)


def row(loader: str, state: str, tier: str, seconds: float = 1.0) -> Timed:
    return Timed(loader=loader, state=state, tier=tier, seconds=seconds)


@pytest.mark.parametrize(
    ("timed", "to_gpu", "links"),
    [
        (row("store", "cold", "disk"), True, (DISK, LINK)),
        (row("store", "cold", "disk"), False, (DISK,)),
        (row("store", "warm", "host"), True, (LINK,)),
        (row("store", "warm", "host"), False, ()),
        (row("store", "warm", "device"), True, ()),
        (row("in-process", "warm", "disk"), True, (PAGE_CACHE, LINK)),
        (row("safetensors", "warm", "file"), False, ()),
        (row("safetensors", "cold", "file"), True, (DISK, LINK)),
    ],
)
def test_a_row_passes_the_links_between_its_bytes_and_their_place(
    timed: Timed,
    to_gpu: bool,  # noqa: FBT001
    links: tuple[str, ...],
) -> None:
    assert passed(timed, to_gpu=to_gpu) == links


def test_the_slowest_link_bounds_a_load() -> None:
    bound = find_bound(row("in-process", "cold", "disk", 2.5), TO_GPU, LIMITS)
    assert bound is not None
    assert (bound.name, bound.limit_s, bound.part) == (DISK, 2.0, 0.8)
    warm = find_bound(row("in-process", "warm", "disk", 0.25), TO_GPU, LIMITS)
    assert warm is not None
    assert (warm.name, warm.limit_s) == (PAGE_CACHE, 0.2)


def test_a_load_far_from_its_link_is_bound_by_what_else_it_does() -> None:
    bound = find_bound(row("store", "warm", "host", 0.5), TO_GPU, LIMITS)
    assert bound is not None
    assert bound.name == OURS
    assert bound.own_s == pytest.approx(0.34)
    (advice,) = advise([(row("store", "warm", "host", 0.5), bound)], TO_GPU, LIMITS)
    assert "store, warm: 340.0 ms beyond what the bytes need" in advice
    assert "1133 us for each of 300 tensors" in advice


def test_what_is_mapped_or_passes_an_unmeasured_link_has_no_bound() -> None:
    assert find_bound(row("store", "warm", "host"), TO_HOST, LIMITS) is None
    unknown = Limits(disk=0.0, page_cache=0.0, link=0.0)
    assert find_bound(row("store", "cold", "disk"), TO_GPU, unknown) is None


def test_a_load_faster_than_what_was_measured_is_still_bound_by_it() -> None:
    bound = find_bound(row("store", "cold", "disk", 1.6), TO_GPU, LIMITS)
    assert bound is not None
    assert (bound.name, bound.part, bound.own_s) == (DISK, 1.25, 0.0)


def test_advice_names_the_link_and_what_takes_bytes_off_it() -> None:
    rows = [
        row("store", "cold", "disk", 2.2),
        row("store", "warm", "host", 0.17),
        row("in-process", "warm", "disk", 0.21),
    ]
    pairs = [(timed, find_bound(timed, TO_GPU, LIMITS)) for timed in rows]
    said = " ".join(advise(pairs, TO_GPU, LIMITS))
    for words in ("the disk (4.00 GB/s)", "the link to the GPU (50.0 GB/s)", "`--compress`"):
        assert words in said
    assert "beyond what the bytes need" not in said


def test_other_loaders_get_no_advice() -> None:
    timed = row("safetensors", "cold", "file", 2.2)
    assert not list(advise([(timed, find_bound(timed, TO_GPU, LIMITS))], TO_GPU, LIMITS))


def test_only_16_bit_floats_that_are_not_compressed_yet_are_worth_it() -> None:
    sizes = [("bfloat16", 60), ("float16", 20), ("float8_e4m3fn", 20)]
    assert compressible_part(sizes, compressed=False) == 0.8
    assert compressible_part(sizes, compressed=True) == 0.0
    assert compressible_part([], compressed=False) == 0.0


def test_what_the_processor_decodes_is_bound_by_that_and_not_by_its_tensors() -> None:
    compressed = Cargo(stored_bytes=8_000_000_000, tensors=300, to_gpu=False, decodes=True)
    timed = row("in-process", "cold", "disk", 8.0)
    bound = find_bound(timed, compressed, LIMITS)
    assert bound is not None
    assert bound.name == DECODING
    (advice,) = advise([(timed, bound)], compressed, LIMITS)
    assert "decoding on the processor" in advice
