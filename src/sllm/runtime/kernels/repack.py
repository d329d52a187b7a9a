"""From the bytes of a file to planes: every weight keeps its number, in every bit.

Each function takes (rows, bytes of a row), or MLX's three tensors, on any device.
"""

from __future__ import annotations

import torch

from sllm.runtime.kernels.layout import Format, Planes, pack

_BLOCK, _SUPERBLOCK = 32, 256
_NIBBLES_PER_WORD = 8


def repack_q4_0(raw: torch.Tensor) -> Planes:
    """Return the planes of blocks of a float16 scale and 16 bytes of nibbles."""
    blocks = _blocks(raw, 18)
    return _planes(Format(4, 8, _BLOCK), _nibbles(blocks[..., 2:], 16), _halves(blocks[..., :2]))


def repack_q4_1(raw: torch.Tensor) -> Planes:
    """Return the planes of blocks of a float16 scale, one to add, and 16 bytes of nibbles."""
    blocks = _blocks(raw, 20)
    scales, offsets = _halves(blocks[..., :2]), _halves(blocks[..., 2:4])
    weights = _nibbles(blocks[..., 4:], 16)
    return _planes(Format(4, 0, _BLOCK), weights, scales, offsets=offsets)


def repack_q5_0(raw: torch.Tensor) -> Planes:
    """Return the planes of blocks of a float16 scale, fifth bits, and 16 bytes of nibbles."""
    blocks = _blocks(raw, 22)
    return _planes(Format(5, 16, _BLOCK), _five_bits(blocks[..., 2:]), _halves(blocks[..., :2]))


def repack_q5_1(raw: torch.Tensor) -> Planes:
    """Return the planes of blocks as Q5_0's, with a float16 to add after the scale."""
    blocks = _blocks(raw, 24)
    scales, offsets = _halves(blocks[..., :2]), _halves(blocks[..., 2:4])
    return _planes(Format(5, 0, _BLOCK), _five_bits(blocks[..., 4:]), scales, offsets=offsets)


def repack_q8_0(raw: torch.Tensor) -> Planes:
    """Return the planes of blocks of a float16 scale and 32 signed bytes."""
    blocks = _blocks(raw, 34)
    unsigned = blocks[..., 2:] ^ 0x80
    return _planes(Format(8, 128, _BLOCK), unsigned, _halves(blocks[..., :2]))


def repack_q4_k(raw: torch.Tensor) -> Planes:
    """Return the planes of superblocks with a scale and a floor for each 32 weights."""
    blocks = _blocks(raw, 144)
    return _with_floors(Format(4, 0, _SUPERBLOCK), blocks, _nibbles(blocks[..., 16:], 32))


def repack_q5_k(raw: torch.Tensor) -> Planes:
    """Return the planes of superblocks as Q4_K's, with a fifth bit per weight."""
    blocks = _blocks(raw, 176)
    low = _nibbles(blocks[..., 48:], 32).unflatten(-1, (8, 32))
    bit = torch.arange(8, dtype=torch.uint8, device=raw.device).view(-1, 1)
    high = (blocks[..., 16:48].unsqueeze(-2) >> bit) & 1
    weights = (low | high << 4).flatten(-2)
    return _with_floors(Format(5, 0, _SUPERBLOCK), blocks, weights)


def repack_q6_k(raw: torch.Tensor) -> Planes:
    """Return the planes of superblocks with a signed scale for each 16 weights of six bits."""
    blocks = _blocks(raw, 210)
    low = _nibbles(blocks[..., :128], 64).unflatten(-1, (2, 4, 32))
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=raw.device).view(-1, 1)
    high = (blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> shift) & 3
    return _planes(
        Format(6, 32, _SUPERBLOCK, halves=2),
        (low | high << 4).flatten(-3),
        _halves(blocks[..., 208:]),
        steps=blocks[..., 192:208].view(torch.int8),
    )


def repack_affine(words: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> Planes:
    """Return the planes of MLX's words of eight nibbles, the lowest bits first."""
    form = Format(4, 0, words.shape[1] * _NIBBLES_PER_WORD // scales.shape[1])
    step = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    weights = ((words.view(torch.int32).unsqueeze(-1) >> step) & 0xF).flatten(1)
    low, _ = pack(form, weights)
    return Planes(form, low, scales.contiguous(), offsets=offsets.contiguous())


def _with_floors(form: Format, blocks: torch.Tensor, weights: torch.Tensor) -> Planes:
    """Return the planes of superblocks that open with d, dmin and 12 bytes of 6-bit numbers.

    What is added is -dmin * floor; the sign is kept with dmin.
    """
    first, second, third = blocks[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    steps = torch.cat((first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)), dim=-1)
    floors = torch.cat((second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)), dim=-1)
    scales, offsets = _halves(blocks[..., :2]), -_halves(blocks[..., 2:4])
    return _planes(form, weights, scales, offsets=offsets, steps=steps, floors=floors)


def _planes(
    form: Format, weights: torch.Tensor, scales: torch.Tensor, **others: torch.Tensor
) -> Planes:
    """Return planes of tensors with the blocks of a row in a dimension of their own."""
    low, high = pack(form, weights.flatten(1))
    flat = {name: plane.flatten(1).contiguous() for name, plane in others.items()}
    return Planes(form, low, scales.flatten(1).contiguous(), high, **flat)


def _blocks(raw: torch.Tensor, block_bytes: int) -> torch.Tensor:
    return raw.view(torch.uint8).view(len(raw), -1, block_bytes)


def _halves(raw: torch.Tensor) -> torch.Tensor:
    return raw.contiguous().view(torch.float16)


def _five_bits(raw: torch.Tensor) -> torch.Tensor:
    """Return weights of four bytes of fifth bits, the lowest first, and 16 bytes of nibbles."""
    bit = torch.arange(8, dtype=torch.uint8, device=raw.device)
    high = ((raw[..., :4].unsqueeze(-1) >> bit) & 1).flatten(-2)
    return _nibbles(raw[..., 4:], 16) | high << 4


def _nibbles(raw: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return the low halves of each `chunk` of bytes, then its high ones."""
    chunks = raw.unflatten(-1, (-1, chunk))
    return torch.cat((chunks & 0x0F, chunks >> 4), dim=-1).flatten(-2)
