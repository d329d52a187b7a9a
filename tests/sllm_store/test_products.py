"""Products with stored rows: the numbers of the gguf package, the same bits however it is cut."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sllm_store.errors import InvalidRequestError
from sllm_store.products import affine_rows, attend, instruction_sets, stored_rows

if TYPE_CHECKING:
    from sllm_store.products import Memory, Rows

# Weights and bytes of a block, and where it has float16 numbers.
BLOCKS = {
    "Q4_0": (32, 18, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q8_0": (32, 34, (0,)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
}
FLOATS = {"float16", "bfloat16"}


def memory(array: np.ndarray) -> Memory:
    assert array.flags.c_contiguous
    return array.ctypes.data, array.nbytes


class Case:
    """A random matrix of one scheme, and its numbers."""

    def __init__(self, scheme: str, rows: int, columns: int, seed: int) -> None:
        self.scheme = scheme
        self.shape = rows, columns
        self.generator = np.random.default_rng(seed)
        self.raw = self._blocks() if scheme in BLOCKS else self._words()
        self.numbers = self._decoded()

    def rows(self, instructions: str = "") -> Rows:
        rows, columns = self.shape
        data = memory(self.raw)
        return stored_rows(self.scheme, data, rows=rows, columns=columns, instructions=instructions)

    def _blocks(self) -> np.ndarray:
        weights, size, halves = BLOCKS[self.scheme]
        rows, columns = self.shape
        blocks = rows * columns // weights
        raw = self.generator.integers(0, 256, (blocks, size), dtype=np.uint8)
        for offset in halves:
            numbers = self.generator.normal(size=blocks).astype(np.float16)
            raw[:, offset : offset + 2] = numbers.view(np.uint8).reshape(-1, 2)
        return raw.reshape(rows, -1)

    def _words(self) -> np.ndarray:
        numbers = self.generator.normal(size=self.shape).astype(np.float32)
        if self.scheme == "float16":
            numbers.flat[0] = 6e-8  # A subnormal number.
            return numbers.astype(np.float16)
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)

    def _decoded(self) -> np.ndarray:
        if self.scheme in BLOCKS:
            kind = gguf.GGMLQuantizationType[self.scheme]
            decoded: np.ndarray = gguf.quants.dequantize(self.raw, kind)
            return decoded
        if self.scheme == "float16":
            return self.raw.astype(np.float32)
        return (self.raw.astype(np.uint32) << 16).view(np.float32)


def multiply(rows: Rows, x: np.ndarray, count: int, threads: int = 1) -> np.ndarray:
    out = np.full((len(x), count), np.nan, dtype=np.float32)
    rows.multiply(memory(x), len(x), memory(out), threads)
    return out


def require_product(found: np.ndarray, x: np.ndarray, numbers: np.ndarray) -> None:
    expected = x.astype(np.float64) @ numbers.astype(np.float64).T
    scale = np.abs(x).astype(np.float64) @ np.abs(numbers).astype(np.float64).T
    assert np.all(np.abs(found - expected) <= 1e-6 * scale)


@st.composite
def products(draw: st.DrawFn) -> tuple[Case, np.ndarray]:
    """A matrix and tokens, of any sizes that the scheme allows."""
    scheme = draw(st.sampled_from([*BLOCKS, *sorted(FLOATS)]))
    if scheme in BLOCKS:
        columns = BLOCKS[scheme][0] * draw(st.integers(1, 5))
    else:
        columns = draw(st.integers(1, 70))
    case = Case(scheme, draw(st.integers(1, 41)), columns, draw(st.integers(0, 1 << 20)))
    tokens = draw(st.integers(1, 11))
    return case, case.generator.normal(size=(tokens, columns)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(product=products())
def test_every_way_to_multiply_gives_the_same_bits(product: tuple[Case, np.ndarray]) -> None:
    (case, x), rows = product, product[0].shape[0]
    found = multiply(case.rows(), x, rows)
    require_product(found, x, case.numbers)
    for instructions in instruction_sets():
        way = case.rows(instructions)
        assert np.array_equal(multiply(way, x, rows, threads=2), found)
        single = [multiply(way, x[i : i + 1], rows, threads=3) for i in range(len(x))]
        assert np.array_equal(np.concatenate(single), found)


@pytest.mark.parametrize("instructions", instruction_sets())
@pytest.mark.parametrize("scheme", [*BLOCKS, *sorted(FLOATS)])
def test_rows_are_decoded_as_the_format_says(scheme: str, instructions: str) -> None:
    case = Case(scheme, 9, 512 if scheme in BLOCKS else 37, seed=1)
    wanted = np.array([8, 0, 0, 5], dtype=np.int64)
    out = np.full((4, case.shape[1]), np.nan, dtype=np.float32)
    case.rows(instructions).decode(memory(wanted), memory(out))
    assert np.array_equal(out, case.numbers[wanted])


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 16])
def test_big_matrices_are_shared_among_threads(threads: int) -> None:
    case = Case("Q4_1", 2051, 576, seed=2)
    for tokens in (1, 3, 37):
        x = case.generator.normal(size=(tokens, 576)).astype(np.float32)
        found = multiply(case.rows(), x, 2051, threads)
        require_product(found, x, case.numbers)
        assert np.array_equal(found, multiply(case.rows(), x, 2051))


def test_rows_longer_than_the_cache_are_multiplied_by_several_tokens() -> None:
    case = Case("Q4_K", 5, 256 * 150, seed=3)
    x = case.generator.normal(size=(5, case.shape[1])).astype(np.float32)
    require_product(multiply(case.rows(), x, 5), x, case.numbers)


def _affine(
    group: int, scale_type: str, instructions: str = ""
) -> tuple[Rows, np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(group)
    words = generator.integers(0, 1 << 32, (13, 32), dtype=np.uint32)
    wide: list[np.ndarray] = [
        generator.normal(size=(13, 256 // group)).astype(np.float32) for _ in range(2)
    ]
    if scale_type == "bfloat16":
        parts: list[np.ndarray] = [(part.view(np.uint32) >> 16).astype(np.uint16) for part in wide]
        wide = [(part.astype(np.uint32) << 16).view(np.float32) for part in parts]
    else:
        parts = [part.astype(scale_type) for part in wide]
        wide = [part.astype(np.float32) for part in parts]
    nibbles = (words[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    grouped = nibbles.reshape(13, -1, group).astype(np.float32)
    numbers: np.ndarray = (wide[0][:, :, None] * grouped + wide[1][:, :, None]).reshape(13, 256)
    kept: list[np.ndarray] = [words, *parts]
    memories = [memory(array) for array in kept]
    rows = affine_rows(
        memories,
        rows=13,
        columns=256,
        group=group,
        scale_type=scale_type,
        instructions=instructions,
    )
    return rows, numbers, kept


@pytest.mark.parametrize("instructions", instruction_sets())
@pytest.mark.parametrize("scale_type", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("group", [64, 128])
def test_affine_rows_follow_from_the_formula(
    group: int, scale_type: str, instructions: str
) -> None:
    rows, numbers, _kept = _affine(group, scale_type, instructions)
    out = np.full((13, 256), np.nan, dtype=np.float32)
    rows.decode(memory(np.arange(13)), memory(out))
    assert np.array_equal(out, numbers)
    x = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
    found = multiply(rows, x, 13, threads=2)
    require_product(found, x, numbers)
    fastest, _, _also_kept = _affine(group, scale_type)
    assert np.array_equal(found, multiply(fastest, x, 13))


def test_several_callers_multiply_at_once() -> None:
    case = Case("Q8_0", 1201, 320, seed=4)
    x = case.generator.normal(size=(1, 320)).astype(np.float32)
    rows, expected = case.rows(), multiply(case.rows(), x, 1201)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: multiply(rows, x, 1201, threads=3), range(200)))
    assert all(np.array_equal(one, expected) for one in found)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_process_multiplies_too() -> None:
    case = Case("Q8_0", 1201, 320, seed=5)
    x = case.generator.normal(size=(1, 320)).astype(np.float32)
    expected = multiply(case.rows(), x, 1201, threads=2)
    child = os.fork()
    if child == 0:
        found = multiply(case.rows(), x, 1201, threads=2)
        os._exit(0 if np.array_equal(found, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_memory_that_does_not_fit_is_refused() -> None:
    case = Case("Q4_1", 4, 64, seed=6)
    address, size = memory(case.raw)
    wrong: list[tuple[str, Memory, int]] = [
        ("Q4_1", (address, size - 1), 64),
        ("Q4_1", (address, size), 48),
        ("Q4_1", (address, size), 0),
        ("Q4_1", (address, size), -64),
        ("Q4_1", (0, size), 64),
        ("IQ2_XS", (address, size), 64),
    ]
    for scheme, data, columns in wrong:
        with pytest.raises(InvalidRequestError, match="cannot be multiplied by"):
            stored_rows(scheme, data, rows=4, columns=columns)
    with pytest.raises(InvalidRequestError, match="no sse9"):
        stored_rows("Q4_1", (address, size), rows=4, columns=64, instructions="sse9")
    x, out = np.zeros((2, 64), dtype=np.float32), np.zeros((2, 4), dtype=np.float32)
    rows = case.rows()
    for tokens, threads in ((1, 1), (3, 1), (-1, 1), (2, 0), (2, 1 << 40)):
        with pytest.raises(ValueError, match=r"bytes|count"):
            rows.multiply(memory(x), tokens, memory(out), threads)
    numbers = np.zeros((1, 64), dtype=np.float32)
    for row in (4, -1):
        with pytest.raises(ValueError, match=f"no row {row}"):
            rows.decode(memory(np.array([row])), memory(numbers))


def test_affine_memory_that_does_not_fit_is_refused() -> None:
    kept = _affine(64, "float32")[2]
    memories = [memory(array) for array in kept]
    short = (memories[1][0], memories[1][1] - 4)
    wrong: list[tuple[list[Memory], int, str]] = [
        (memories[:2], 64, "float32"),
        ([memories[0], short, memories[2]], 64, "float32"),
        (memories, 32, "float32"),
        (memories, 128, "float32"),
        (memories, 64, "float16"),
        (memories, 64, "int8"),
    ]
    for given_memories, group, scale_type in wrong:
        with pytest.raises(InvalidRequestError, match="cannot be multiplied by"):
            affine_rows(given_memories, rows=13, columns=256, group=group, scale_type=scale_type)


def _attention(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Query, keys, values, places and a result; and what the result should be."""
    generator = np.random.default_rng(count)
    query = generator.normal(size=(6, 32)).astype(np.float32)
    keys, values = (generator.normal(size=(40, 2, 32)).astype(np.float32) for _ in range(2))
    places = generator.permutation(40)[:count].astype(np.int64)
    expected = np.zeros((6, 32))
    for head in range(6):
        scores = keys[places, head // 3].astype(np.float64) @ query[head] / np.sqrt(32)
        shares = np.exp(scores - scores.max())
        expected[head] = shares / shares.sum() @ values[places, head // 3]
    return [query, keys, values, places, np.full_like(query, np.nan)], expected


@pytest.mark.parametrize("count", [1, 2, 15, 40])
def test_a_token_attends_to_places_of_a_cache(count: int) -> None:
    arrays, expected = _attention(count)
    query, keys, values, places, out = map(memory, arrays)
    attend(query, (keys, values), places, shape=(6, 2, 32), out=out, threads=2)
    np.testing.assert_allclose(arrays[-1], expected, rtol=1e-5, atol=1e-6)


def test_attention_that_does_not_fit_is_refused() -> None:
    arrays, _ = _attention(3)
    query, keys, values, places, out = map(memory, arrays)
    shape = (6, 2, 32)
    for wrong in ((6, 4, 32), (6, 0, 32), (6, 2, 8), (6, 2, 0), (12, 2, 32), (-6, 2, 32)):
        with pytest.raises(ValueError, match=r"heads|bytes|count"):
            attend(query, (keys, values), places, shape=wrong, out=out, threads=1)
    short = (values[0], values[1] - 4)
    with pytest.raises(ValueError, match="the values"):
        attend(query, (keys, short), places, shape=shape, out=out, threads=1)
    for place in (40, -1):
        far = np.array([0, place], dtype=np.int64)
        with pytest.raises(ValueError, match=f"no place {place}"):
            attend(query, (keys, values), memory(far), shape=shape, out=out, threads=1)
