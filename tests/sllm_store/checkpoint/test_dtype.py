"""Element types agree with those whose names they are."""

from __future__ import annotations

import gguf
import torch

from sllm_store.checkpoint.dtype import BLOCK_SIZES, GGML_TYPES, ITEM_SIZES, contiguous_bytes

# Their bytes mean nothing without a scale or a packing that a tensor does not tell.
PACKED = {"quint4x2", "quint2x4"}


def test_every_dtype_of_torch_has_its_size() -> None:
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    names = {str(dtype).removeprefix("torch."): dtype.itemsize for dtype in dtypes}
    assert {name: size for name, size in names.items() if name not in PACKED}.items() <= (
        ITEM_SIZES.items()
    )


def test_every_block_type_of_the_reference_has_its_size() -> None:
    ours = {number: (elements, size) for number, (_, elements, size) in GGML_TYPES.items()}
    assert ours == {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for number, (name, *_) in GGML_TYPES.items():
        if name in BLOCK_SIZES:
            assert name == f"gguf:{gguf.GGMLQuantizationType(number).name}"


def test_rows_of_blocks_are_counted_in_blocks() -> None:
    assert contiguous_bytes("gguf:Q4_1", (3, 64)) == 3 * 2 * 20
    assert contiguous_bytes("bfloat16", (3, 5)) == 30
    assert contiguous_bytes("float64", ()) == 8
