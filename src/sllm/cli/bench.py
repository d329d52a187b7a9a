"""`gdsllm bench`: how fast a model loads and answers, through a server as clients use it."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from sllm.cli.finding import any_server
from sllm.cli.forecast import SAID, bound_of
from sllm.cli.options import root_option, url_option
from sllm.cli.run import ensure_model
from sllm.cli.terminal import say, say_table
from sllm.core.errors import ServerError

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.cli.server_client import ServerClient

_NS = 1e9
_WORDS = (
    "river stone above seven window quiet green morning letter behind paper small garden never "
    "table before winter yellow answer market under simple bridge travel silver often music road"
)


@click.command()
@root_option
@url_option
@click.argument("model")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Answers.")
@click.option(
    "--tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Of an answer."
)
@click.option(
    "--words", type=click.IntRange(min=1), default=200, show_default=True, help="Of a prompt."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Answers at a time."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(*, model: str, root: Path | None, url: str | None, as_json: bool, **chosen: int) -> None:
    """Measure a MODEL: loading, prompts and answers, alone and in a batch. Medians of the runs.

    It is unloaded before each load, which may still find its bytes in the page cache. No two
    prompts begin alike, so nothing of one is there for another. Tokens that speculation guessed
    right count, so that answers may be faster than the memory, link or disk that bounds them allows
    without guesses.
    """
    with any_server(url, root) as client:
        ensure_model(client, model)
        found = measure(client, model, **chosen)
    if as_json:
        say(json.dumps(found))
        return
    say_table(
        ("WHAT", "MEDIAN"),
        [
            ("load", f"{found['load_s']:.3f} s"),
            ("first token", f"{found['first_token_s']:.3f} s"),
            ("prompt", f"{found['prompt_tokens_per_s']:.1f} tokens/s"),
            ("answer", f"{found['answer_tokens_per_s']:.1f} tokens/s{_share(found)}"),
            (
                f"{found['batch']} answers with their prompts",
                f"{found['batch_tokens_per_s']:.1f} tokens/s",
            ),
        ],
    )


def measure(
    client: ServerClient, model: str, *, runs: int, tokens: int, words: int, batch: int
) -> dict[str, Any]:
    """Return what was measured, in seconds and tokens a second. Raises ServerError."""
    loads_s = [_load_s(client, model) for _ in range(runs)]

    def answer(number: int) -> dict[str, Any]:
        prompt = " ".join(random.Random(number).choices(_WORDS.split(), k=words))
        return _answer(client, model, f"{number} {prompt}", tokens)

    answer(-1)  # The first one may still compile or map something.
    alone = [answer(number) for number in range(runs)]
    rates = []
    with ThreadPoolExecutor(batch) as threads:
        for run in range(runs):
            started_s = time.perf_counter()
            done = list(threads.map(answer, range(runs + run * batch, runs + (run + 1) * batch)))
            count = sum(last["eval_count"] for last in done)
            rates.append(count / (time.perf_counter() - started_s))
    bound = bound_of(client, model)
    answer_rate = median(_rate(last, "eval") for last in alone)
    return {
        "model": model,
        "runs": runs,
        "batch": batch,
        "prompt_tokens": alone[0]["prompt_eval_count"],
        "load_s": median(loads_s),
        "first_token_s": median(last["first_token_s"] for last in alone),
        "prompt_tokens_per_s": median(_rate(last, "prompt_eval") for last in alone),
        "answer_tokens_per_s": answer_rate,
        "bound": None if bound is None else bound[0],
        "bound_tokens_per_s": None if bound is None else bound[1],
        "share_of_bound": None if bound is None else answer_rate / bound[1],
        "batch_tokens_per_s": median(rates),
    }


def _share(found: dict[str, Any]) -> str:
    """Return how much of the bound that is; nothing if it is not known."""
    if found["bound"] is None:
        return ""
    most = f"{found['bound_tokens_per_s']:.1f}"
    return f", {found['share_of_bound']:.0%} of the {most} that {SAID[found['bound']]} allows"


def _load_s(client: ServerClient, model: str) -> float:
    """Return how long a load takes, once the model is unloaded."""
    client.ask("POST", "/api/generate", {"model": model, "keep_alive": 0})
    started_s = time.perf_counter()
    client.ask("POST", "/api/generate", {"model": model, "stream": False})
    return time.perf_counter() - started_s


def _answer(client: ServerClient, model: str, prompt: str, tokens: int) -> dict[str, Any]:
    """Return the last line of an answer, and when its first one came."""
    body = {
        "model": model,
        "prompt": prompt,
        "raw": True,
        "options": {"num_predict": tokens, "temperature": 0},
    }
    started_s = time.perf_counter()
    first_token_s = 0.0
    last: dict[str, Any] = {}
    for step in client.stream("/api/generate", body):
        last = step
        first_token_s = first_token_s or time.perf_counter() - started_s
    if not (last.get("eval_count") and last.get("prompt_eval_count")):
        raise ServerError(f"{model} answered nothing, so there is nothing to measure")
    return {**last, "first_token_s": first_token_s}


def _rate(last: dict[str, Any], name: str) -> float:
    """Return tokens a second, of what the server says it took."""
    return float(last[f"{name}_count"] * _NS / max(last.get(f"{name}_duration") or 0, 1))
