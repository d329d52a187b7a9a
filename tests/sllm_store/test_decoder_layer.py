"""A native layer: the same bits with any instructions, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

from sllm_store.decoder_layer import DecoderLayer, decoder_layer
from sllm_store.errors import InvalidRequestError
from sllm_store.products import Memory, instruction_sets, stored_rows

HIDDEN, HEADS, KV_HEADS, WIDTH, INNER, TOKENS, PLACES = 64, 4, 2, 16, 96, 3, 8
SHAPE = {
    "hidden": HIDDEN,
    "heads": HEADS,
    "kv_heads": KV_HEADS,
    "width": WIDTH,
    "rotated": WIDTH,
    "window": 0,
}
MATRICES = {
    "query": (HEADS * WIDTH, HIDDEN),
    "key": (KV_HEADS * WIDTH, HIDDEN),
    "value": (KV_HEADS * WIDTH, HIDDEN),
    "output": (HIDDEN, HEADS * WIDTH),
    "gate": (INNER, HIDDEN),
    "up": (INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


def memory(array: np.ndarray) -> Memory:
    return array.ctypes.data, array.nbytes


class Case:
    """Random weights, tokens and a cache."""

    def __init__(self) -> None:
        generator = np.random.default_rng(5)

        def floats(*shape: int) -> np.ndarray:
            return generator.normal(size=shape, scale=0.3).astype(np.float32)

        self.matrices = {
            name: floats(*shape).astype(np.float16) for name, shape in MATRICES.items()
        }
        self.vectors = {name: floats(HIDDEN) for name in ("attention_norm", "mlp_norm")}
        self.vectors["query_norm"] = floats(WIDTH)
        self.x, self.query = floats(TOKENS, HIDDEN), floats(TOKENS, HEADS, WIDTH)
        self.cos, self.sin = floats(TOKENS, WIDTH // 2), floats(TOKENS, WIDTH // 2)
        self.keys, self.values = floats(PLACES, KV_HEADS, WIDTH), floats(PLACES, KV_HEADS, WIDTH)
        self.mixed = np.zeros_like(self.query)
        self.written = np.array([2, 7, 4])
        self.seen = np.array([5, 0, 2, 7, 4])

    def layer(self, instructions: str = "", changes: dict[str, int] | None = None) -> DecoderLayer:
        rows = {
            name: stored_rows(
                "float16",
                memory(matrix),
                rows=len(matrix),
                columns=matrix.shape[1],
                instructions=instructions,
            )
            for name, matrix in self.matrices.items()
        }
        vectors = {name: memory(vector) for name, vector in self.vectors.items()}
        return decoder_layer(
            rows, vectors, SHAPE | (changes or {}), interleaved=False, epsilon=1e-5
        )

    def compute(self, layer: DecoderLayer) -> np.ndarray:
        cache = memory(self.keys), memory(self.values)
        layer.begin(
            memory(self.x),
            rotation=(memory(self.cos), memory(self.sin)),
            cache=cache,
            written=memory(self.written),
            query=memory(self.query),
            threads=2,
        )
        spans = [(0, TOKENS, memory(self.seen))]
        layer.attend(memory(self.query), cache, spans=spans, mixed=memory(self.mixed), threads=2)
        layer.finish(memory(self.x), memory(self.mixed), threads=2)
        return self.x


@pytest.mark.parametrize("instructions", instruction_sets())
def test_instructions_change_no_bit(instructions: str) -> None:
    case, other = Case(), Case()
    found = case.compute(case.layer(instructions))
    assert np.isfinite(found).all()
    assert np.array_equal(found, other.compute(other.layer("portable")))


@pytest.mark.parametrize(
    "changes", [{"hidden": 48}, {"heads": 3}, {"width": 8}, {"rotated": 18}, {"kv_heads": 0}]
)
def test_weights_of_another_shape_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="are no layer"):
        Case().layer(changes=changes)


@pytest.mark.parametrize("missing", ["query", "down"])
def test_a_missing_matrix_is_named(missing: str) -> None:
    case = Case()
    del case.matrices[missing]
    with pytest.raises(InvalidRequestError, match=missing):
        case.layer()


def test_a_missing_norm_is_named() -> None:
    case = Case()
    del case.vectors["mlp_norm"]
    with pytest.raises(InvalidRequestError, match="mlp_norm"):
        case.layer()


@pytest.mark.parametrize("place", [-1, PLACES])
def test_a_place_beyond_the_cache_is_refused(place: int) -> None:
    case = Case()
    case.written[1] = place
    with pytest.raises(ValueError, match=f"no place {place}"):
        case.compute(case.layer())


def test_memory_of_another_size_is_refused() -> None:
    case = Case()
    case.cos = case.cos[:2].copy()
    with pytest.raises(ValueError, match="cosines"):
        case.compute(case.layer())


def test_a_span_needs_places_for_its_tokens() -> None:
    case = Case()
    case.seen = case.seen[:2].copy()
    with pytest.raises(ValueError, match="a span has rows and places"):
        case.compute(case.layer())
