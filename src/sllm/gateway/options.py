"""Options of a request, in Ollama's words, into SamplingParameters.

The model's own parameters go before an API's defaults, and what a request names before both.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from sllm.core.errors import InvalidRequestError
from sllm.core.philox import SEED_MAX
from sllm.core.sampling import SamplingParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

SEED_BITS = 63
# Each costs time at every token of the answer, and everybody's.
STOPS_MAX = 64
BIASES_MAX = 1024
# What Ollama samples with unless told otherwise (its api/types.go).
OLLAMA_DEFAULTS = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
}
OPENAI_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
# Of other samplers; each does nothing at this value, and is refused at any other.
NEUTRAL = {"typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0.0}
_HUGE = 1e30
_FLOATS = frozenset(
    {"temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_INTEGERS = frozenset({"top_k", "repeat_last_n", "num_predict", "num_ctx", "num_keep", "seed"})


def parse_options(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what several layers of options say together, the last one first, each checked.

    Nulls are as good as nothing. Names that are not known here are left out, as Ollama does:
    they are about its way of computing. Raises InvalidRequestError for a value of a wrong kind.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= {name: value for name, value in layer.items() if value is not None}
    found: dict[str, Any] = {}
    for name, value in merged.items():
        if name in NEUTRAL and _number(name, value) != NEUTRAL[name]:
            raise InvalidRequestError(
                f"options.{name}: no such sampler is here; use temperature, top_k, top_p or min_p"
            )
        if name in _FLOATS:
            found[name] = _number(name, value)
        elif name in _INTEGERS:
            found[name] = _integer(name, value)
        elif name == "stop":
            found[name] = _stops(value)
        elif name == "logit_bias":
            found[name] = _biases(value)
    return found


def sampling(
    options: Mapping[str, Any], *, logprobs: int | None, room_tokens: int
) -> SamplingParameters:
    """Return the parameters of parsed options, for an answer of `room_tokens` at most.

    A seed of -1, or none, is drawn.

    Raises InvalidSamplingError.
    """
    seed = options.get("seed", -1)
    predicted = options.get("num_predict", -1)
    window = options.get("repeat_last_n", 64)
    return SamplingParameters(
        seed=secrets.randbits(SEED_BITS) if seed == -1 else seed & SEED_MAX,
        max_tokens=min(predicted, room_tokens) if predicted > 0 else room_tokens,
        temperature=options.get("temperature", 1.0),
        top_k=max(options.get("top_k", 0), 0),
        top_p=options.get("top_p", 1.0),
        min_p=options.get("min_p", 0.0),
        repeat_penalty=options.get("repeat_penalty", 1.0),
        repeat_window=None if window == -1 else window,
        presence_penalty=options.get("presence_penalty", 0.0),
        frequency_penalty=options.get("frequency_penalty", 0.0),
        logit_bias=options.get("logit_bias", {}),
        logprobs=logprobs,
        stop=options.get("stop", ()),
    )


def require_usable(parameters: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError or InvalidSamplingError for what no request could be answered with.

    parameters: a model's own, before they are kept.
    """
    sampling(parse_options(parameters), logprobs=None, room_tokens=1)


def _number(name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE:
        return float(value)
    raise InvalidRequestError(f"options.{name}: {str(value)[:64]!r} is not a number in reason")


def _integer(name: str, value: Any) -> int:
    if not _number(name, value).is_integer():
        raise InvalidRequestError(f"options.{name}: {value!r} is not a whole number")
    return int(value)


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError("options.stop: not a text, or a list of texts")
    if len(texts) > STOPS_MAX:
        raise InvalidRequestError(f"options.stop: {len(texts)} texts are more than {STOPS_MAX}")
    return tuple(text for text in texts if text)


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or not all(str(token).isdecimal() for token in value):
        raise InvalidRequestError("logit_bias: not an object of token ids and numbers")
    if len(value) > BIASES_MAX:
        raise InvalidRequestError(f"logit_bias: {len(value)} are more than {BIASES_MAX}")
    return {int(token): _number("logit_bias", bias) for token, bias in value.items()}
