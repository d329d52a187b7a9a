"""Element types: our names (torch's, without the prefix), sizes, and other formats' names."""

from __future__ import annotations

from math import prod

ITEM_SIZES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    **{f"uint{bits}": 1 for bits in range(1, 8)},
    **{f"int{bits}": 1 for bits in range(1, 8)},
    **{f"bits{bits}": 1 for bits in ("1x8", "2x4", "4x2", "8")},
    "bits16": 2,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
}

HALF_FLOATS = frozenset({"float16", "bfloat16"})

SAFETENSORS_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",  # Two elements a byte: the last dimension halves.
}

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    # Number in the file: (name, elements in a block, bytes of a block).
    0: ("float32", 1, 4),
    1: ("float16", 1, 2),
    2: ("gguf:Q4_0", 32, 18),
    3: ("gguf:Q4_1", 32, 20),
    6: ("gguf:Q5_0", 32, 22),
    7: ("gguf:Q5_1", 32, 24),
    8: ("gguf:Q8_0", 32, 34),
    9: ("gguf:Q8_1", 32, 40),
    10: ("gguf:Q2_K", 256, 84),
    11: ("gguf:Q3_K", 256, 110),
    12: ("gguf:Q4_K", 256, 144),
    13: ("gguf:Q5_K", 256, 176),
    14: ("gguf:Q6_K", 256, 210),
    15: ("gguf:Q8_K", 256, 292),
    16: ("gguf:IQ2_XXS", 256, 66),
    17: ("gguf:IQ2_XS", 256, 74),
    18: ("gguf:IQ3_XXS", 256, 98),
    19: ("gguf:IQ1_S", 256, 50),
    20: ("gguf:IQ4_NL", 32, 18),
    21: ("gguf:IQ3_S", 256, 110),
    22: ("gguf:IQ2_S", 256, 82),
    23: ("gguf:IQ4_XS", 256, 136),
    24: ("int8", 1, 1),
    25: ("int16", 1, 2),
    26: ("int32", 1, 4),
    27: ("int64", 1, 8),
    28: ("float64", 1, 8),
    29: ("gguf:IQ1_M", 256, 56),
    30: ("bfloat16", 1, 2),
    34: ("gguf:TQ1_0", 256, 54),
    35: ("gguf:TQ2_0", 256, 66),
    39: ("gguf:MXFP4", 32, 17),
    40: ("gguf:NVFP4", 64, 36),
    41: ("gguf:Q1_0", 128, 18),
}

BLOCK_SIZES: dict[str, tuple[int, int]] = {
    name: (elements, size_bytes)
    for name, elements, size_bytes in GGML_TYPES.values()
    if name.startswith("gguf:")
}


def contiguous_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a contiguous tensor; rows of blocks must be whole blocks."""
    elements = prod(shape)
    if dtype in ITEM_SIZES:
        return elements * ITEM_SIZES[dtype]
    per_block, block_bytes = BLOCK_SIZES[dtype]
    assert not shape or shape[-1] % per_block == 0
    return elements // per_block * block_bytes
