"""A group laid out for a device has the numbers of its stored bytes, in every bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sllm.runtime.quant.schemes import find_scheme
from sllm.runtime.weights.images import GroupImage
from sllm.runtime.weights.views import view_group
from sllm_store.groups.layout import lay_out
from sllm_store.groups.stored import StoredTensor
from tests.sllm.runtime.quant.block_cases import COLUMNS, ROWS, random_bytes

ROOT = Path(__file__).parents[4]


def _tensor(name: str, dtype: str, shape: tuple[int, ...], raw: bytes) -> StoredTensor:
    return StoredTensor(
        name=f"model.layers.0.{name}",
        dtype=dtype,
        shape=shape,
        item_bytes=1 if dtype.startswith("gguf:") else 4,
        file=0,
        offset=0 if dtype == "float32" else 4096,
        size_bytes=len(raw),
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_blocks_become_planes_and_floats_stay(name: str) -> None:
    norm = torch.randn(COLUMNS)
    blocks = random_bytes(find_scheme(name)).tobytes()
    tensors = [
        _tensor("norm.weight", "float32", (COLUMNS,), norm.numpy().tobytes()),
        _tensor("mlp.up_proj.weight", f"gguf:{name}", (ROWS, COLUMNS), blocks),
    ]
    layout = lay_out(tensors)
    raw = torch.zeros(layout.size_bytes, dtype=torch.uint8)
    for place, content in zip(layout.places, (norm.numpy().tobytes(), blocks), strict=True):
        raw[place : place + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image = GroupImage(layout)
    assert not image.is_stored
    memory = torch.zeros(image.size_bytes, dtype=torch.uint8)
    image.write(memory, raw)
    found, expected = image.view(memory), view_group(layout, raw)
    assert torch.equal(found["norm.weight"], norm)  # type: ignore[arg-type]
    planar, stored = found["mlp.up_proj.weight"], expected["mlp.up_proj.weight"]
    assert not isinstance(planar, torch.Tensor)
    assert not isinstance(stored, torch.Tensor)
    x = torch.randn(3, COLUMNS)
    assert planar.shape == stored.shape
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(planar.dequantize(dtype), stored.dequantize(dtype))
    assert torch.allclose(planar.linear(x), stored.linear(x), rtol=1e-3, atol=1e-3)


def test_floats_alone_lie_as_they_are_stored() -> None:
    norm = torch.randn(8)
    layout = lay_out([_tensor("norm.weight", "float32", (8,), norm.numpy().tobytes())])
    image = GroupImage(layout)
    raw = torch.zeros(layout.size_bytes, dtype=torch.uint8)
    raw[:32] = norm.view(torch.uint8)
    assert image.is_stored
    assert image.size_bytes == image.stored_bytes == layout.size_bytes
    memory = torch.zeros(image.size_bytes, dtype=torch.uint8)
    image.write(memory, raw)
    assert torch.equal(image.view(memory)["norm.weight"], norm)  # type: ignore[arg-type]


def test_planning_a_layout_imports_no_compiler_of_pytorch_s() -> None:
    code = (
        "import sys\n"
        "from tests.sllm.runtime.weights.test_images import _tensor\n"
        "from sllm.runtime.weights.images import GroupImage\n"
        "from sllm_store.groups.layout import lay_out\n"
        "tensor = _tensor('mlp.up_proj.weight', 'gguf:Q4_0', (64, 32), bytes(64 * 18))\n"
        "assert GroupImage(lay_out([tensor])).size_bytes >= 64 * 18\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "torch._dynamo" not in ran.stdout.split()


def test_floats_move_to_where_wide_loads_may_begin() -> None:
    values = torch.randn(4, 8)
    stored = replace(_tensor("up.weight", "float32", (4, 8), values.numpy().tobytes()), offset=8)
    layout = lay_out([stored])
    image = GroupImage(layout)
    raw = torch.zeros(layout.size_bytes, dtype=torch.uint8)
    raw[layout.places[0] : layout.places[0] + 128] = values.view(-1).view(torch.uint8)
    assert not image.is_stored
    memory = torch.zeros(image.size_bytes, dtype=torch.uint8)
    image.write(memory, raw)
    found = image.view(memory)["up.weight"]
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, values)
    assert found.storage_offset() * 4 % 16 == 0
