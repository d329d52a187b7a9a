"""`gdsllm rm`, `cp` and `create`: change which models there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sllm.cli.edge import Failure
from sllm.cli.options import as_source, open_library, root_option
from sllm.cli.terminal import is_interactive, note, say

if TYPE_CHECKING:
    from sllm.library.model import Model


@click.command()
@root_option
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(*, models: tuple[str, ...], yes: bool, root: Path | None) -> None:
    """Remove models. Files outside of the model root stay."""
    library = open_library(root)
    for name in models:
        if not yes:
            if not is_interactive():
                raise Failure(f"{name} was not removed: nobody can be asked here; pass --yes")
            click.confirm(f"Remove {name}?", abort=True, err=True)
        library.remove(name)
        say(f"removed {name}")


@click.command()
@root_option
@click.argument("source")
@click.argument("destination")
def cp(*, source: str, destination: str, root: Path | None) -> None:
    """Give the model SOURCE a second name. Its bytes are shared."""
    say(f"copied {source} to {open_library(root).copy(source, destination).name}")


@click.command()
@root_option
@click.argument("name")
@click.option(
    "--file",
    "-f",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("Modelfile"),
    show_default=True,
    help="The Modelfile to make it from.",
)
@click.option("--from", "source", help="A model or a path to make it from, without a Modelfile.")
@click.option("--system", help="The system message, over the Modelfile's.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing.")
def create(
    *,
    name: str,
    path: Path,
    source: str | None,
    system: str | None,
    quiet: bool,
    root: Path | None,
) -> None:
    """Make a model NAME out of another one, or of a checkpoint on disk, which is used in place."""
    from sllm.gateway.options import require_usable
    from sllm.library.modelfile import Modelfile, parse_modelfile
    from sllm.text.template import ChatTemplate

    library = open_library(root)
    if source is not None:
        made, where = Modelfile(source=source), Path.cwd()
    else:
        made, where = parse_modelfile(_read(path)), path.absolute().parent
    require_usable(made.parameters)
    if made.template:
        ChatTemplate(made.template)
    origin = as_source(made.source)
    if isinstance(origin, str) and (where / origin).exists():
        origin = where / origin
    elif isinstance(origin, Path) and not made.source.startswith(("/", "~")):
        origin = (where / made.source).resolve()
    if isinstance(origin, Path) and origin.is_relative_to(library.root):
        origin = _name_of(library.list(), origin)
    model = library.create(
        name,
        source=origin,
        template=made.template,
        system=made.system if system is None else system,
        parameters=made.parameters,
        license=made.license,
        messages=made.messages,
    )
    if not quiet:
        note(f"created {model.name}")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise Failure(
            f"there is no {path} here: write one, name another with --file, or a model with --from"
        ) from error
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not text in UTF-8: a Modelfile begins with FROM") from error


def _name_of(models: list[Model], path: Path) -> str | Path:
    """Return the name of a model by its path: a Modelfile by `show` has that after FROM."""
    return next((model.name for model in models if model.path == path), path)
