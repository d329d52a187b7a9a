"""Operands of the matrix units, made in registers of the words as they were loaded.

A warp has four groups of sixteen rows. Lane 4 * g + q has group q of rows g and g + 8: that is
just what the unit wants of rows, with a word's nibbles e and e + 4, 16 bits apart, as neighbours.
Under the exponent of 128 (in float16 of 64) a nibble n is the number 128 + n, exactly, for a shift
and one logical operation a pair. x has a column for each of four groups and two tokens, with zeros
where a row of the unit belongs to another group, so that every group has sums of its own.

Text here is PTX. Its operands are the four words of each tensor that a lane has, in order.
"""

import triton.language as tl

_WORDS = range(4)
_EVEN_NIBBLES = (0, 2)
_ZERO = ".reg .f32 z; mov.f32 z, 0f00000000;"


def _pairs(first: int) -> str:
    """Return text that makes p<word><nibble>, two numbers of x, of the 16 operands from first."""
    lines = [".reg .b32 " + ", ".join(f"p{word}{e}" for word in _WORDS for e in range(4)) + ";"]
    for word in _WORDS:
        picked = "0x7632" if word % 2 else "0x5410"
        for e in range(4):
            near = first + 2 * e + word // 2
            lines.append(f"prmt.b32 p{word}{e}, ${near}, ${near + 8}, {picked};")
    return "\n".join(lines)


def _multiply(kind: str, fragment: str, word: int, e: int) -> str:
    """Return text that adds a product of 16 columns to the sums, which begin from z."""
    unit = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"
    sums = "$0, $1, $2, $3"
    added = sums if word or e else "z, z, z, z"
    return f"{unit} {{{sums}}}, {{{fragment}}}, {{p{word}{e}, p{word}{e + 1}}}, {{{added}}};"


def _sums(kind: str, one: str) -> str:
    """Return text that adds x up: operands 4 to 19 are x."""
    lines = [_pairs(4), f".reg .b32 o; mov.b32 o, {one};", _ZERO]
    lines += [_multiply(kind, "o, o, o, o", word, e) for word in _WORDS for e in _EVEN_NIBBLES]
    return "{\n" + "\n".join(lines) + "\n}"


def _step(kind: str, magic: str, lowest: int) -> str:
    """Return text that multiplies: operands 4 to 11 are words, 12 to 27 x.

    lowest: the bit of the number's mantissa that is 1.
    """
    lines = [_pairs(12), f".reg .b32 a0, a1, a2, a3, m, s; mov.b32 m, {magic};", _ZERO]
    for word in _WORDS:
        for e in _EVEN_NIBBLES:
            for place, (rows, nibble) in enumerate(((4, e), (8, e), (4, e + 1), (8, e + 1))):
                lines.append(_number(f"a{place}", f"${rows + word}", 4 * nibble - lowest, lowest))
            lines.append(_multiply(kind, "a0, a1, a2, a3", word, e))
    return "{\n" + "\n".join(lines) + "\n}"


def _number(name: str, word: str, right: int, lowest: int) -> str:
    """Return text that puts two nibbles where a number has its lowest bits."""
    moved = "" if right == 0 else f"{'shr' if right > 0 else 'shl'}.b32 s, {word}, {abs(right)};\n"
    mask = f"0x{0x000F000F << lowest:08x}"
    return f"{moved}lop3.b32 {name}, {'s' if right else word}, {mask}, m, 0xea;"


BASE_BFLOAT16, BASE_FLOAT16 = tl.constexpr(128), tl.constexpr(64)
SUMS_BFLOAT16 = tl.constexpr(_sums("bf16", "0x3f803f80"))
SUMS_FLOAT16 = tl.constexpr(_sums("f16", "0x3c003c00"))
STEP_BFLOAT16 = tl.constexpr(_step("bf16", "0x43004300", 0))
STEP_FLOAT16 = tl.constexpr(_step("f16", "0x54005400", 4))
SUMS_OPERANDS = tl.constexpr("=&f,=&f,=&f,=&f," + ",".join(["r"] * 16))
STEP_OPERANDS = tl.constexpr("=&f,=&f,=&f,=&f," + ",".join(["r"] * 24))


def _numbers(magic: str, lowest: int) -> str:
    """Return text that makes a word of two rows numbers: operands 8 and 9, of 32 columns' part."""
    lines = [f".reg .b32 m, s; mov.b32 m, {magic};"]
    for e in range(4):
        for row in range(2):
            place = e // 2 * 4 + e % 2 * 2 + row
            lines.append(_number(f"${place}", f"${8 + row}", 4 * e - lowest, lowest))
    return "{\n" + "\n".join(lines) + "\n}"


def _columns(kind: str) -> str:
    """Return text that multiplies numbers, operands 4 to 11, by 8 tokens' x, 12 to 15."""
    unit = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"
    sums = "$0, $1, $2, $3"
    return (
        "{\n.reg .f32 z; mov.f32 z, 0f00000000;\n"
        f"{unit} {{{sums}}}, {{$4, $5, $6, $7}}, {{$12, $13}}, {{z, z, z, z}};\n"
        f"{unit} {{{sums}}}, {{$8, $9, $10, $11}}, {{$14, $15}}, {{{sums}}};\n}}"
    )


# Where the unit's 8 columns are tokens: lane 4 * g + q has word q of a group of rows g and g + 8.
NUMBERS_BFLOAT16 = tl.constexpr(_numbers("0x43004300", 0))
NUMBERS_FLOAT16 = tl.constexpr(_numbers("0x54005400", 4))
NUMBERS_OPERANDS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 2))
COLUMNS_BFLOAT16 = tl.constexpr(_columns("bf16"))
COLUMNS_FLOAT16 = tl.constexpr(_columns("f16"))
COLUMNS_OPERANDS = tl.constexpr(",".join(["=&f"] * 4 + ["r"] * 12))
LOAD_FOUR = tl.constexpr("ld.global.v4.b32 {$0, $1, $2, $3}, [$4];")
WORDS_LOADED, FLOATS_LOADED = tl.constexpr("=r,=r,=r,=r,l"), tl.constexpr("=f,=f,=f,=f,l")
