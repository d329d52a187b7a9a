"""`gdsllm list` and `show`: which models there are, and what one is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from sllm.cli.options import open_library, root_option
from sllm.cli.terminal import format_age, format_count, note, say, say_facts, say_table
from sllm_store.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.library.model import Model

_ID_DIGITS = 12


@click.command("list")
@root_option
@click.argument("beginning", required=False, default="")
def list_command(*, beginning: str, root: Path | None) -> None:
    """List the models on this machine, or those whose names have a BEGINNING."""
    library = open_library(root)
    now = datetime.now(UTC)
    known = library.list(lambda error: note(f"error: {error}"))
    models = [model for model in known if model.name.lower().startswith(beginning.lower())]
    if known and not models:
        note(f"no model's name begins with {beginning}: `gdsllm list` names all {len(known)}")
        return
    if not models:
        note(f"no models in {library.root}: `gdsllm pull smollm2` fetches a small one")
        return
    say_table(
        ("NAME", "ID", "SIZE", "MODIFIED"),
        [
            (
                model.name,
                model.digest.removeprefix("sha256:")[:_ID_DIGITS],
                format_size(model.size_bytes),
                format_age(model.modified_at, now),
            )
            for model in models
        ],
    )
    for model in models:
        if model.problem is not None:
            note(f"{model.name} cannot be used: {model.problem}")


@click.command()
@root_option
@click.argument("model")
@click.option("--modelfile", "part", flag_value="modelfile", help="Print the Modelfile.")
@click.option("--parameters", "part", flag_value="parameters", help="Print the parameters.")
@click.option("--template", "part", flag_value="template", help="Print the chat template.")
@click.option("--system", "part", flag_value="system", help="Print the system message.")
@click.option("--license", "part", flag_value="license", help="Print the license.")
def show(*, model: str, part: str | None, root: Path | None) -> None:
    """Show what a MODEL is."""
    found = open_library(root).get(model)
    if part is None:
        _show_all(found)
    else:
        say(_part_of(found, part))


def _show_all(model: Model) -> None:
    info, family = model.info, model.details.family
    say_facts(
        "Model",
        {
            "name": model.name,
            "architecture": family,
            "parameters": format_count(model.details.parameter_size),
            "quantization": model.details.quantization,
            "format": model.details.format,
            **{
                key.replace("_", " "): info[f"{family}.{key}"]
                for key in ("context_length", "embedding_length", "block_count", "expert_count")
                if f"{family}.{key}" in info
            },
            "size": format_size(model.size_bytes),
            "path": model.path,
            "source": model.source,
            "digest": model.digest,
        },
    )
    say_facts("Parameters", model.parameters)
    if model.system:
        say_facts("System", {"": model.system})
    if model.license:
        say_facts("License", {"": model.license.strip().splitlines()[0]})
    if model.problem is not None:
        note(f"it cannot be used: {model.problem}")


def _part_of(model: Model, part: str) -> str:
    from sllm.library.modelfile import format_modelfile, format_parameters

    if part == "modelfile":
        return format_modelfile(model).rstrip("\n")
    if part == "parameters":
        return "\n".join(format_parameters(model))
    if part == "template":
        own = model.template
        return (model.published_template if own is None else own) or ""
    return (model.system if part == "system" else model.license) or ""
