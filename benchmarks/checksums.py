"""Whether a load delivered the right bytes: position-weighted sums, taken on the device.

Tensors of one size are summed together, so that 20,000 small ones take as long as their bytes do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BATCH_BYTES = 128 << 20
_PERIOD = 65521


def checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return of each tensor the sum of its 16-bit words, each weighted by its place."""
    sums: dict[str, int] = {}
    for names in _batches(tensors):
        words = [_words(tensors[name]) for name in names]
        rows = torch.stack(words) if len(words) > 1 else words[0].unsqueeze(0)
        total = torch.zeros(len(names), dtype=torch.int64, device=rows.device)
        for number, part in enumerate(torch.split(rows, _BATCH_BYTES // 2, dim=1)):
            place = torch.arange(part.shape[1], device=rows.device) % _PERIOD + 1 + number
            total += (part.long() * place).sum(dim=1)
        sums |= zip(names, total.tolist(), strict=True)
    return sums


def differing(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, int]) -> list[str]:
    """Return the names of tensors that are missing or have other bytes than expected."""
    found = checksums({name: tensors[name] for name in expected if name in tensors})
    return [name for name, total in expected.items() if found.get(name) != total]


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes as 16-bit words, an odd last byte padded."""
    content = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if content.numel() % 2:
        content = torch.nn.functional.pad(content, (0, 1))
    if content.storage_offset() % 2:
        content = content.clone()
    return content.view(torch.int16)


def _batches(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Yield names of tensors that have one size, as many as a batch may hold."""
    by_size: dict[tuple[int, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        by_size.setdefault((tensor.nbytes, tensor.device), []).append(name)
    for (size_bytes, _), names in by_size.items():
        count = max(1, _BATCH_BYTES // max(size_bytes, 1))
        for start in range(0, len(names), count):
            yield names[start : start + count]
