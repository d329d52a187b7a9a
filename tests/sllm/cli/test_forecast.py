"""What bounds a model is told where it is listed, and beside an answer's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from tests.sllm.cli.fake_ollama import FakeOllama

STREAMED: dict[str, Any] = {
    "bound": "host",
    "tokens_per_s": 12.34,
    "stored_bytes": {"device": 2 << 30, "host": 4 << 30, "disk": 0},
    "token_bytes": {"device": 6 << 30, "host": 4 << 30, "disk": 0},
    "bytes_per_s": {"device": 4 << 40, "host": 50 << 30, "disk": None},
    "expert_hit_rate": 1.0,
}


def test_a_bound_is_listed(run: Callable[..., Result], ollama: FakeOllama) -> None:
    ollama.forecast = STREAMED
    (line,) = run("ps", "--host", ollama.url).stdout.splitlines()[1:]
    assert "12.3 tokens/s by the link" in line


def test_where_weights_lie_is_beside_the_figures(
    run: Callable[..., Result], ollama: FakeOllama
) -> None:
    ollama.forecast = STREAMED
    told = run("run", "tiny", "hi", "--verbose", "--host", ollama.url).stderr
    lines = [" ".join(line.split()) for line in told.splitlines()][-4:]
    assert lines == [
        "weights in: 2.0 GB memory, 4.0 GB host memory",
        "a token takes: 6.0 GB memory, 4.0 GB link",
        "at: 4.0 TB/s memory, 50.0 GB/s link",
        "so at most: 12.3 tokens/s by the link",
    ]


def test_a_rate_that_is_not_known_is_not_made_up(
    run: Callable[..., Result], ollama: FakeOllama
) -> None:
    ollama.forecast = {**STREAMED, "bound": None, "tokens_per_s": None}
    told = run("run", "tiny", "hi", "--verbose", "--host", ollama.url).stderr
    assert "not known: a rate was not measured yet" in told
    assert "tokens/s by" not in run("ps", "--host", ollama.url).stdout
