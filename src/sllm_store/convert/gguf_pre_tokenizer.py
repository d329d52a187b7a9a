"""How each `tokenizer.ggml.pre` cuts text into words before BPE: lists of regular expressions.

The expressions are applied in order, each to the pieces that the one before it left. They are
llama.cpp's (llama-vocab.cpp, MIT), or the model's own where llama.cpp's engine needed another.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_NEWLINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_KANA_AND_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _tiktoken(digits: str) -> str:
    """Return the pattern of Llama 3 and Qwen 2, which differ in how many digits go together."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_NEWLINES_AND_SPACES}"
    )


def _cased(digits: str, contractions: str = "") -> str:
    """Return the pattern of Tekken and GPT-4o, which cut before a capital in a word."""
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{contractions}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{contractions}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_NEWLINES_AND_SPACES}"
    )


_LLAMA3 = _tiktoken(r"\p{N}{1,3}")
_QWEN2 = _tiktoken(r"\p{N}")
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_NEWLINES_AND_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_NEWLINES_AND_SPACES}"
)
_DEEPSEEK_SCRIPTS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_SENTENCE = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_JAIS2_SPACES = "|".join(rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """Expressions, and what llama.cpp knows of the models that use them.

    whole_words: a word that is in the vocabulary is one token, whatever the merges say.
    add_bos: whether a text starts with the start token when the file does not tell.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


def _same(names: str, pre_tokenizer: PreTokenizer) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), pre_tokenizer)


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_same(
        "default",
        PreTokenizer(
            expressions=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        ),
    ),
    **_same(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer(expressions=(_LLAMA3,), whole_words=True, add_bos=True),
    ),
    **_same("dbrx smaug-bpe chatglm-bpe", PreTokenizer(expressions=(_LLAMA3,))),
    **_same("glm4 glm5", PreTokenizer(expressions=(_LLAMA3,), whole_words=True)),
    **_same(
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        PreTokenizer(expressions=(_QWEN2,)),
    ),
    **_same("qwen35", PreTokenizer(expressions=(_QWEN35,))),
    **_same(
        "minicpm5",
        PreTokenizer(expressions=(r"\p{N}{1,3}", _tiktoken(r"\p{N}+")), whole_words=True),
    ),
    **_same(
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe "
        "gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling exaone4",
        PreTokenizer(expressions=(_GPT2,)),
    ),
    **_same(
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        PreTokenizer(expressions=(r"\p{N}", _GPT2)),
    ),
    **_same(
        "falcon",
        PreTokenizer(expressions=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ),
    **_same(
        "deepseek-llm",
        PreTokenizer(
            expressions=(
                "[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _DEEPSEEK_SCRIPTS,
                r"\p{N}+",
            ),
        ),
    ),
    **_same(
        "deepseek-coder",
        PreTokenizer(
            expressions=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_SCRIPTS, r"\p{N}"),
        ),
    ),
    **_same(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer(expressions=(r"\p{N}{1,3}", _KANA_AND_HAN, _DEEPSEEK3)),
    ),
    **_same("poro-chat bloom gpt3-finnish", PreTokenizer(expressions=(_SENTENCE,))),
    **_same("viking", PreTokenizer(expressions=(_SENTENCE, r"\p{N}"))),
    **_same(
        "tekken",
        PreTokenizer(expressions=(_cased(r"\p{N}"),), whole_words=True, add_bos=True),
    ),
    **_same(
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        PreTokenizer(expressions=(_cased(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"),)),
    ),
    **_same(
        "jais-2",
        PreTokenizer(
            expressions=(
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_JAIS2_SPACES}"
                r"|\s{1,2}(?!\S)|\s{1}",
            ),
        ),
    ),
    **_same(
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            expressions=(
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        ),
    ),
    **_same(
        "seed-coder",
        PreTokenizer(
            expressions=(
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_NEWLINES_AND_SPACES}",
            ),
        ),
    ),
}
