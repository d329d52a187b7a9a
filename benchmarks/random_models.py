"""Models of real shapes with random weights, made where they are used: nothing is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernel_cases import BF16, Case
from sllm.runtime.config.families import parse_config
from sllm.runtime.kernels.layout import Planes
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.assembly import assemble_ends, assemble_layer
from sllm.runtime.weights.expected import end_shapes, is_vector, layer_shapes
from sllm.runtime.weights.images import Image
from sllm.runtime.weights.resident import ResidentWeights

if TYPE_CHECKING:
    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.expected import Shapes

_LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_SMALL: dict[str, Any] = {
    **_LLAMA_8B,
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def llama_8b(*, small: bool) -> ModelConfig:
    """Return the configuration of Llama-3.1-8B, or of a model of that kind for trying programs."""
    return parse_config(_SMALL if small else _LLAMA_8B, where="the benchmark")


class RandomModel:
    """Weights of one format on a device, all of them resident."""

    def __init__(self, config: ModelConfig, format_: str, device: torch.device) -> None:
        """Make them; `format_` is one that `kernel_cases` knows."""
        self.config = config
        self._format = format_
        self._device = device
        self._made = 0
        self.weights = ResidentWeights(
            assemble_ends(config, self._tensors(end_shapes(config))),
            [
                assemble_layer(config, index, self._tensors(layer_shapes(config, index)))
                for index in range(len(config.layers))
            ],
        )

    def read_bytes(self) -> int:
        """Return what a pass reads of matrices: all but the embedding, of which it reads rows."""
        total = 0
        for index in range(len(self.config.layers)):
            with self.weights.layer(index) as weights:
                total += sum(matrix.size_bytes for matrix in weights.matrices.values())
        return total + self.weights.ends.matrices["lm_head.weight"].size_bytes

    def _tensors(self, shapes: Shapes) -> dict[str, torch.Tensor | Matrix]:
        """Make tensors, and lay them out as a checkpoint's are on a device."""
        made = {
            name: torch.ones(shape, device=self._device, dtype=torch.bfloat16)
            if is_vector(name)
            else self._matrix(*shape)
            for name, shape in shapes.items()
        }
        image = Image(made)
        memory = torch.empty(image.size_bytes, dtype=torch.uint8, device=self._device)
        image.write(memory, made)
        return image.view(memory)

    def _matrix(self, rows: int, columns: int) -> torch.Tensor | Matrix:
        case = Case(format=self._format, rows=rows, columns=columns, tokens=1)
        self._made += 1
        weight = case.weight(self._device, seed=self._made)
        if isinstance(weight, Planes):
            return PlanarMatrix(weight)
        assert self._format == BF16
        return weight
