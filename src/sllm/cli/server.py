"""`gdsllm serve`, `ps` and `stop`: a server's life."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm.cli.edge import Failure
from sllm.cli.finding import TOKEN_VARIABLE, checkpoint_of, running_server
from sllm.cli.forecast import at_most
from sllm.cli.options import SizeType, as_source, open_library, root_option, url_option
from sllm.cli.pull import pull_with_bars
from sllm.cli.server_record import find_servers, recorded, stop_server
from sllm.cli.terminal import note, say, say_table
from sllm.core.errors import ModelNotFoundError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    Serve = Callable[..., Any]

_PORT = 8000


def _limit(name: str, *, default: int, variable: str, told: str) -> Callable[[Serve], Serve]:
    """Return an option that is a number, or what Ollama's variable of it says."""
    return click.option(
        name,
        type=int,
        default=default,
        show_default=True,
        envvar=variable,
        show_envvar=True,
        help=told,
    )


@click.command()
@root_option
@click.argument("model", required=False)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to serve on. One that others can reach needs GDSLLM_API_TOKEN.",
)
@click.option("--port", type=int, default=_PORT, show_default=True, help="The port to serve on.")
@click.option("--preload", is_flag=True, help="Load MODEL at once, instead of when it is asked.")
@click.option(
    "--context",
    type=int,
    envvar="OLLAMA_CONTEXT_LENGTH",
    show_envvar=True,
    help="Tokens of context. Default: what the memory allows.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:1, say.")
@click.option("--device-budget", type=SizeType(), help="GPU memory to use at most: 16GB.")
@click.option("--host-budget", type=SizeType(), help="Host memory for weights at most: 64GB.")
@_limit("--parallel", default=8, variable="OLLAMA_NUM_PARALLEL", told="Answers at a time.")
@_limit("--queue", default=512, variable="OLLAMA_MAX_QUEUE", told="Requests that may wait.")
@_limit("--max-loaded", default=1, variable="OLLAMA_MAX_LOADED_MODELS", told="Models at a time.")
@click.option("--draft", help="A small model of the same tokens, whose guesses are checked.")
@click.option(
    "--speculate/--no-speculate",
    default=True,
    show_default=True,
    help="Whether to guess tokens and check them; answers are the same.",
)
@click.option(
    "--keepalive",
    envvar="OLLAMA_KEEP_ALIVE",
    show_envvar=True,
    help="How long a model stays loaded: 10m, 1h, -1 for ever.",
)
@click.option(
    "--origins",
    default="",
    envvar="OLLAMA_ORIGINS",
    show_envvar=True,
    help="Web pages of other hosts that may use the server: http://localhost:*,https://app.example",
)
def serve(*, model: str | None, preload: bool, root: Path | None, **chosen: Any) -> None:
    """Serve Ollama's and OpenAI's APIs. Every model here can be asked for, MODEL from the start.

    MODEL is fetched first if it is not here and can be.
    """
    from sllm.gateway.backing import open_ahead
    from sllm.gateway.keep_alive import parse_keep_alive
    from sllm.gateway.listening import listen
    from sllm.gateway.settings import KEEP_ALIVE_S, Settings

    library = open_library(root)
    if preload and model is None:
        raise click.UsageError("--preload needs a MODEL")
    name = _ensure(library, model) if model else None
    draft = _ensure(library, chosen["draft"]) if chosen["draft"] else None
    keep_alive = chosen["keepalive"]
    settings = Settings(
        model_root=library.root,
        host=chosen["host"],
        port=chosen["port"],
        token=os.environ.get(TOKEN_VARIABLE) or None,
        keep_alive_s=parse_keep_alive(keep_alive) if keep_alive else KEEP_ALIVE_S,
        max_loaded=chosen["max_loaded"],
        parallel=chosen["parallel"],
        queue=chosen["queue"],
        context_tokens=chosen["context"],
        device=chosen["device"],
        device_budget_bytes=chosen["device_budget"],
        host_budget_bytes=chosen["host_budget"],
        draft=library.get(draft).path if draft else None,
        speculate=chosen["speculate"],
        preload=(name,) if name and preload else (),
        origins=tuple(filter(None, (one.strip(" /") for one in chosen["origins"].split(",")))),
    )
    signal.signal(signal.SIGTERM, _leave)

    path = checkpoint_of(library, name) if name and preload else None
    with closing(listen(settings)) as bound, open_ahead(settings, path) as backing:
        from sllm.gateway.serve import serve as run_server

        url = f"http://{_reachable(settings.host)}:{bound.getsockname()[1]}"
        with recorded(os.environ, url, library.root):
            note(f"serving {library.root} at {url}")
            run_server(settings, bound, library=library, backing=backing)


@click.command()
@url_option
def ps(*, url: str | None) -> None:
    """List the models that are loaded."""
    with running_server(url) as client:
        models = client.ask("GET", "/api/ps").get("models", [])
    if not models:
        note("no model is loaded")
        return
    say_table(
        ("NAME", "ID", "SIZE", "PROCESSOR", "AT MOST", "CONTEXT", "UNTIL"),
        [
            (
                model["name"],
                str(model.get("digest", "")).removeprefix("sha256:")[:12],
                format_size(model.get("size", 0)),
                _processor(model),
                at_most(model),
                model.get("context_length", ""),
                _until(model.get("expires_at")),
            )
            for model in models
        ],
    )


@click.command()
@url_option
@click.argument("model", required=False)
@click.option("--port", type=int, help="Which server to stop, where several run.")
def stop(*, model: str | None, url: str | None, port: int | None) -> None:
    """Unload MODEL; without one, stop the server that runs here."""
    if model is not None:
        with running_server(url) as client:
            client.ask("POST", "/api/generate", {"model": model, "keep_alive": 0})
        say(f"unloaded {model}")
        return
    records = [
        record
        for record in find_servers(os.environ)
        if port is None or record.url.endswith(f":{port}")
    ]
    if not records:
        raise Failure("no server of yours runs here" + (f" on port {port}" if port else ""))
    if len(records) > 1:
        urls = ", ".join(record.url for record in records)
        raise Failure(f"several servers run ({urls}): say which with --port")
    stop_server(records[0])
    say(f"stopped the server at {records[0].url}")


def _leave(number: int, frame: object) -> None:
    """End in order, so that the record goes; uvicorn raises its signal again when it has ended."""
    del number, frame
    sys.exit()


def _ensure(library: Any, model: str) -> str:
    """Return the name of a model that is here, after fetching it if need be."""
    source = as_source(model)
    if isinstance(source, Path):
        return str(pull_with_bars(library, source).name)
    try:
        return str(library.get(source).name)
    except ModelNotFoundError:
        if not library.is_known(source):
            raise
    return str(pull_with_bars(library, source).name)


def _reachable(host: str) -> str:
    """Return where a client on this machine finds a server that listens on a host."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return everywhere.get(host, f"[{host}]" if ":" in host else host)


def _processor(model: dict[str, Any]) -> str:
    size, on_gpu = model.get("size", 0), model.get("size_vram", 0)
    if not on_gpu:
        return "100% CPU"
    share = min(round(100 * on_gpu / size), 100) if size else 100
    return "100% GPU" if share == 100 else f"{100 - share}%/{share}% CPU/GPU"


def _until(text: str | None) -> str:
    try:
        seconds = (datetime.fromisoformat(text or "") - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return "forever"
    if seconds > 10 * 365 * 86400:
        return "forever"
    return f"{max(round(seconds / 60), 1)} minutes from now" if seconds > 0 else "stopping"
