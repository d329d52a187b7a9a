"""What a server forecasts of a loaded model, in words: where it lies, and what bounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm.cli.terminal import note
from sllm_store.units import format_size

if TYPE_CHECKING:
    from sllm.cli.server_client import ServerClient

SAID = {"device": "memory", "host": "the link", "disk": "the disk"}


def forecast_of(client: ServerClient, model: str) -> dict[str, Any] | None:
    """Return what the server says of a model; None if it is not loaded, or the server is mute."""
    loaded = client.ask("GET", "/api/ps").get("models", [])
    names = {model, f"{model}:latest"}
    return next((one.get("forecast") for one in loaded if one.get("name") in names), None)


def bound_of(client: ServerClient, model: str) -> tuple[str, float] | None:
    """Return which tier bounds a model, and the tokens a second that this allows, if known."""
    return _bound(forecast_of(client, model))


def at_most(model: dict[str, Any]) -> str:
    """Return the bound of a loaded model in a few words."""
    return _in_words(_bound(model.get("forecast")))


def write_forecast(client: ServerClient, model: str) -> None:
    """Write where the weights lie, what a token needs of each tier, and what that allows."""
    told = forecast_of(client, model)
    if told is None:
        return
    _line("weights in", _sizes(told["stored_bytes"], {"device": "memory", "host": "host memory"}))
    _line("a token takes", _sizes(told["token_bytes"], SAID))
    rates = {tier: rate for tier, rate in told["bytes_per_s"].items() if rate}
    _line("at", _sizes(rates, SAID, "/s"))
    _line("so at most", _in_words(_bound(told)) or "not known: a rate was not measured yet")


def _bound(told: dict[str, Any] | None) -> tuple[str, float] | None:
    told = told or {}
    bound, rate = told.get("bound"), told.get("tokens_per_s")
    return None if bound not in SAID or not rate else (bound, float(rate))


def _in_words(bound: tuple[str, float] | None) -> str:
    return "" if bound is None else f"{bound[1]:.1f} tokens/s by {SAID[bound[0]]}"


def _sizes(sizes: dict[str, float], names: dict[str, str], unit: str = "") -> str:
    """Return sizes that are not nothing, each with what it is of."""
    return ", ".join(
        f"{format_size(round(size))}{unit} {names.get(tier, SAID[tier]).removeprefix('the ')}"
        for tier, size in sizes.items()
        if size
    )


def _line(name: str, value: str) -> None:
    note(f"{name + ':':<22}{value}")
