"""Options that several commands have, and how what they say is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm_store.units import parse_size

if TYPE_CHECKING:
    from sllm.library.models import Library

_PATHS = ("/", "./", "../", "~")
_FILES = (".gguf", ".safetensors")

root_option = click.option(
    "--model-root",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where models are kept. Default: GDSLLM_MODEL_ROOT, else ~/.local/share/gdsllm/models.",
)
url_option = click.option(
    "--host",
    "url",
    help="The server to ask. Default: LLM_SERVER_URL, OLLAMA_HOST, else the one that runs here.",
)


class SizeType(click.ParamType[int]):
    """A number of bytes with a unit: 16GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def open_library(root: Path | None) -> Library:
    """Return the library at a root, or the one that the environment names.

    It fetches no weights that could not be computed with, and takes none in.
    """
    from sllm.library.models import Library

    return Library.open(os.environ, root, check=_check)


def _check(path: Path, name: str) -> None:
    """Raise unless a model can be computed with.

    Given is its config.json before its weights are there, a GGUF of which the header is, or a
    checkpoint as a whole.
    """
    if path.name == "config.json":
        from sllm.runtime.config.families import read_config

        read_config(path.parent, where=name)
        return
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm.text.files import ModelFiles
    from sllm_store.convert.text_files import read_text_files

    ModelGroups.open(path)
    if path.is_dir():
        ModelFiles.read(path)
    else:
        read_text_files(path)


def as_source(text: str) -> str | Path:
    """Return a Path for what looks like one, else the text: the name of a model."""
    looks = text.startswith(_PATHS) or text in {".", ".."}
    if looks or (text.endswith(_FILES) and Path(text).exists()):
        return Path(text).expanduser().absolute()
    return text
