"""Warming: kernels of a model's products and draws, compiled or loaded while its weights are read.

Each kernel is compiled once for a kind of matrix and of launch, and later processes load it from
Triton's cache. Compiling takes seconds each, for which the first answer would have to wait. Threads
do it over memory that nobody has written to: what is there does not matter. Loading takes
milliseconds, so a process that finds all of it done leaves each kernel to its first use.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from sllm.runtime.current_device import launching_on
from sllm.runtime.kernels.chains import can_chain, chained_launches
from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.moving import place_dense
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.images import GroupImage
from sllm.runtime.weights.joining import join_matrices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sllm.runtime.kernels.warm_memory import WarmMemory
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.model_groups import ModelGroups

# One step, a few, and a few guesses: each has a kernel of its own. Longer prompts are multiplied by
# decoded rows.
TOKENS = (1, 2, 4, 7)
_THREADS = 4  # Compiling is partly Python's, whose lock they share.


class Kind(NamedTuple):
    """Matrices that the same kernels multiply by."""

    scheme: str
    rows: int
    columns: int


@contextmanager
def warmed_products(
    model: ModelGroups,
    *,
    device: torch.device,
    dtype: torch.dtype,
    room_bytes: int,
    memory: WarmMemory | None = None,
) -> Iterator[frozenset[Kind]]:
    """Warm the products with every kind of matrix of a model, and what draws tokens of it, beside
    what the context does.

    room_bytes: what the matrices may take on the device meanwhile, one for each thread; those that
    are larger are left out. memory: what knows that a process has done all this, and is told.
    Leaving the context waits for the end, and raises what a kernel raised.
    """
    found = find_kinds(model)
    work = f"{dtype} {TOKENS} {model.config.vocabulary} {sorted(found)}"
    if memory is not None and memory.knows(work):
        yield frozenset()
        return
    kinds = {kind: matrix for kind, matrix in found.items() if matrix.size_bytes <= room_bytes}
    largest = max((matrix.size_bytes for matrix in kinds.values()), default=0)
    fitting = max(min(room_bytes // max(largest, 1), _THREADS), 1)
    with ThreadPoolExecutor(fitting, thread_name_prefix="warming") as threads:
        jobs = [threads.submit(_warm_draws, model.config.vocabulary, device)]
        jobs += [threads.submit(_warm, matrix, device, dtype) for matrix in kinds.values()]
        try:
            yield frozenset(kinds)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    are_there = [job.result() for job in jobs]
    if memory is not None and all(are_there) and kinds.keys() == found.keys():
        memory.remember(work)


def find_kinds(model: ModelGroups) -> dict[Kind, Matrix]:
    """Return a matrix of each kind, over memory that is not there; experts are not among them."""
    found: dict[Kind, Matrix] = {}
    for layout in model.reader.layouts[: len(model.config.layers) + 1]:
        image = GroupImage(layout)
        nowhere = torch.empty(image.size_bytes, dtype=torch.uint8, device="meta")
        matrices: dict[str, Matrix] = {}
        for name, tensor in image.view(nowhere).items():
            if not isinstance(tensor, torch.Tensor):
                matrices[name] = tensor
            elif tensor.dim() == 2:
                matrices[name] = Dense(tensor)
        for matrix in (*matrices.values(), *join_matrices(matrices).values()):
            found.setdefault(_kind_of(matrix), matrix)
    return found


def _kind_of(matrix: Matrix) -> Kind:
    if isinstance(matrix, PlanarMatrix):
        return Kind(str(matrix.planes.format), *matrix.shape)
    assert isinstance(matrix, Dense), "a matrix is quantised or not"
    return Kind(str(matrix.values.dtype), *matrix.shape)


def _warm(matrix: Matrix, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether there was room."""
    try:
        with launching_on(device):
            there = _allocate(matrix, device)
            _multiply(there, device, dtype)
            if can_chain(device):  # Steps are compiled for themselves: see `kernels.chains`.
                with chained_launches(device):
                    _multiply(there, device, dtype)
                    there.embed(torch.zeros(1, dtype=torch.int32, device=device), dtype)
            there.embed(torch.zeros(1, dtype=torch.long, device=device), dtype)
            there.part(0, 1).dequantize(dtype)
    except torch.OutOfMemoryError:
        return False  # There is no room to do it before the weights are there; they come first.
    return True


def _warm_draws(vocabulary: int, device: torch.device) -> bool:
    """Return whether there was room."""
    from sllm.runtime.kernels.draws import ASKED, TOP_MAX, draws

    if not TOP_MAX:
        return True  # Nothing is drawn by kernels.
    try:
        with launching_on(device):
            asked = torch.zeros((ASKED, 1), dtype=torch.float64, device=device)
            draws(torch.zeros((1, vocabulary), device=device), asked)
    except torch.OutOfMemoryError:
        return False
    return True


def _multiply(matrix: Matrix, device: torch.device, dtype: torch.dtype) -> None:
    # Of floats, only one token's product is compiled; the others are cuBLAS's.
    for tokens in (1,) if isinstance(matrix, Dense) else TOKENS:
        matrix.linear(torch.zeros((tokens, matrix.shape[1]), dtype=dtype, device=device))


def _allocate(matrix: Matrix, device: torch.device) -> Matrix:
    if isinstance(matrix, PlanarMatrix):
        return PlanarMatrix(matrix.planes.map(lambda plane: torch.empty_like(plane, device=device)))
    assert isinstance(matrix, Dense), "a matrix is quantised or not"
    return place_dense(torch.empty_like(matrix.values, device=device))
