"""`gdsllm run`: one answer, or a chat."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm.cli import INTERRUPTED
from sllm.cli.answers import write_answer
from sllm.cli.chat import Chat
from sllm.cli.finding import any_server
from sllm.cli.forecast import write_forecast
from sllm.cli.options import as_source, open_library, root_option, url_option
from sllm.cli.pull import pull_with_bars
from sllm.cli.terminal import is_interactive, note, pull_bars
from sllm.core.errors import InvalidRequestError, ModelNotFoundError

if TYPE_CHECKING:
    from sllm.cli.server_client import ServerClient

# The command's options that are the API's, by the name that they have there.
_OPTIONS = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "seed": "seed",
}


@click.command()
@root_option
@url_option
@click.argument("model")
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompt", help="The prompt: answer it, and end.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="End an answer after so many tokens."
)
@click.option("--temperature", type=float, help="0 takes the likeliest token, more is bolder.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens of this share.")
@click.option("--top-k", type=int, help="Choose among so many of the likeliest tokens.")
@click.option("--min-p", type=float, help="Leave out tokens below this share of the likeliest.")
@click.option("--repeat-penalty", type=float, help="Above 1 makes repeating less likely.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--system", help="A system message, instead of the model's.")
@click.option("--format", "shape", help='"json", or a JSON schema: its text, or a file of it.')
@click.option("--think/--no-think", default=None, help="Let a model that can think do so, or not.")
@click.option("--hidethinking", is_flag=True, help="Do not show thoughts.")
@click.option("--verbose", is_flag=True, help="Say how long it took, and how fast it was.")
@click.option("--keepalive", help="How long a server keeps the model loaded: 10m, -1 for ever.")
def run(
    *, model: str, words: tuple[str, ...], root: Path | None, url: str | None, **chosen: Any
) -> None:
    """Chat with a MODEL, or have it answer a PROMPT, also from a pipe.

    A server that runs here is used, else one is started for as long as this takes. A model that is
    not here is fetched if it is known where from.
    """
    prompt = _read_prompt(words, chosen["prompt"])
    if isinstance(source := as_source(model), Path):
        model = pull_with_bars(open_library(root), source).name
    body = {
        "options": {
            name: chosen[option] for option, name in _OPTIONS.items() if chosen[option] is not None
        },
        **_given(
            format=_read_format(chosen["shape"]),
            think=chosen["think"],
            keep_alive=_keep_alive(chosen["keepalive"]),
        ),
    }
    system = _given(system=chosen["system"])
    shown = {"hide_thinking": chosen["hidethinking"], "verbose": chosen["verbose"]}
    with any_server(url, root, model=model) as client:
        ensure_model(client, model)
        if prompt is None:
            _converse(Chat(client, model, body=body, **system, **shown))
            return
        request = {**body, **system, "model": model, "prompt": prompt}
        answer = write_answer(client.stream("/api/generate", request), **shown)
        if chosen["verbose"]:
            write_forecast(client, model)
    if answer.interrupted:
        sys.exit(INTERRUPTED)


def ensure_model(client: ServerClient, model: str) -> None:
    """Have the server fetch a model that it does not have. Raises what it answers."""
    from sllm.library.names import ModelName
    from sllm.library.origins import Origins

    try:
        client.ask("POST", "/api/show", {"model": model})
    except ModelNotFoundError:
        if not Origins().knows(ModelName.parse(model)):
            raise
        with pull_bars() as on_step, closing(client.stream("/api/pull", {"model": model})) as steps:
            for step in steps:
                on_step(step.get("status", ""), step.get("total"), step.get("completed"))


def _converse(chat: Chat) -> None:
    from sllm.cli.typing_in import make_reader

    note(f"loading {chat.model}", dim=True)
    chat.load()
    note(
        'Ask away. /? lists the commands, """ begins and ends several lines, /bye leaves.', dim=True
    )
    chat.converse(make_reader(chat))


def _read_prompt(words: tuple[str, ...], given: str | None) -> str | None:
    """Return the prompt out of what is piped in and what is written; None for a chat."""
    if isinstance(sys.stdin, TextIOWrapper):  # What is piped in may be no text in UTF-8.
        sys.stdin.reconfigure(errors="replace")
    piped = "" if sys.stdin is None or is_interactive() else sys.stdin.read().strip()
    parts = [part for part in (piped, given or "", " ".join(words)) if part]
    if parts:
        return "\n\n".join(parts)
    if given is None and not words and is_interactive():
        return None
    raise InvalidRequestError("there is no prompt: write one, or pipe one in")


def _read_format(text: str | None) -> str | dict[str, Any] | None:
    if text is None or text == "json":
        return text
    try:
        schema = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())
    except OSError as error:
        raise InvalidRequestError(
            f"--format: {text} cannot be read ({error.strerror}): give json, the text of a JSON "
            "schema, or a file of it"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(f"--format: not a JSON schema: {error}") from error
    if not isinstance(schema, dict):
        raise InvalidRequestError("--format: a JSON schema is an object")
    return schema


def _keep_alive(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
