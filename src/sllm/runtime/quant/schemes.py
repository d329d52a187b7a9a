"""Which class decodes which stored scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.core.errors import UnsupportedModelError
from sllm.runtime.quant.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from sllm.runtime.quant.gguf_superblocks import Q4_K, Q5_K, Q6_K

if TYPE_CHECKING:
    from sllm.runtime.quant.block_matrix import BlockMatrix

_SCHEMES: dict[str, type[BlockMatrix]] = {
    scheme.__name__: scheme for scheme in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)
}


def find_scheme(name: str) -> type[BlockMatrix]:
    """Return the class of a GGUF quantisation; raise UnsupportedModelError for another."""
    if name not in _SCHEMES:
        raise UnsupportedModelError(
            f"weights quantised as {name} are not computed: take a file of the model in one of "
            f"{', '.join(_SCHEMES)}"
        )
    return _SCHEMES[name]
