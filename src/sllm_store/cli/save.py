"""`sllm-store save`: a model from a path or a hub becomes a checkpoint under the storage path."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm_store.cli.connection import if_running
from sllm_store.cli.disk_quota import require_room
from sllm_store.cli.finding import storage_root
from sllm_store.cli.options import (
    Backend,
    Size,
    UserPath,
    disk_size_option,
    json_option,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import progress, say, say_json
from sllm_store.cli.watched import run_watched
from sllm_store.errors import CheckpointNotFoundError, InvalidRequestError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from sllm_store.checkpoint.model import Checkpoint

_ADAPTER_CONFIG = "adapter_config.json"  # PEFT's name.
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")


@click.command()
@click.option("--model", metavar="NAME_OR_PATH", help="A model on the Hugging Face hub, or a path.")
@click.option(
    "--source",
    type=UserPath(),
    help="A path to import: a directory of safetensors, a GGUF file, or a checkpoint.",
)
@click.option(
    "--backend",
    type=Backend(),
    metavar="transformers",
    default="transformers",
    show_default=True,
    help="What the checkpoint is for.",
)
@click.option("--adapter", is_flag=True, help="Save a LoRA adapter: the one of --adapter-name.")
@click.option("--adapter-name", metavar="NAME_OR_PATH", help="A LoRA adapter to save.")
@click.option(
    "--name", help="Its name in the store.  [default: the hub's, or the path's last part]"
)
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    default="auto",
    show_default=True,
    help="Cast floating point tensors; auto keeps them (a GGUF's blocks become float32).",
)
@click.option(
    "--compress",
    is_flag=True,
    help="Code 16-bit floats without loss, where that makes them smaller.",
)
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    type=Size(),
    default="10GB",
    show_default=True,
    help="Size of a data file.",
)
@click.option(
    "--num-threads",
    "threads",
    type=click.IntRange(1, 64),
    help="Threads that read, convert, code and write.  [default: 4, all processors to code]",
)
@click.option(
    "--local-model-path", type=UserPath(), help="Where the files of --model are, instead of a hub."
)
@click.option(
    "--tensor-parallel-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="For plugins that cut a checkpoint per rank; transformers has 1.",
)
@storage_path_option
@disk_size_option
@json_option
@verbose_option
def save(*, disk_bytes: int | None, as_json: bool, **options: Any) -> None:
    """Save a model as a checkpoint.

    Its tokenizer and configuration travel along. It appears whole or not at all; a checkpoint of
    the same name is replaced, a directory with other things in it is not.

    \b
    sllm-store save --model Qwen/Qwen3-0.6B
    sllm-store save --source ~/Downloads/model.gguf --name my-model --dtype bfloat16
    sllm-store save --adapter-name ./my-lora
    """
    order = _parse(options)
    source = order.local if order.local is not None else _fetch(order)
    if options["adapter_name"]:
        _require_adapter(source)
    target = order.storage_path / order.name
    size_bytes = _size_after(source, order)
    require_room(order.storage_path, target, size_bytes, disk_bytes)
    from sllm_store.convert.importer import import_checkpoint

    with progress(f"saving {order.name}") as on_progress:
        report = run_watched(
            lambda control: import_checkpoint(
                source,
                target,
                dtype=order.dtype,
                max_shard_bytes=order.max_shard_bytes,
                threads=order.threads,
                compress=order.compress,
                on_progress=on_progress,
                control=control,
            )
        )
    if as_json:
        say_json(
            {
                "name": order.name,
                "path": str(target),
                "source": str(source),
                "source_format": report.source_format,
                "tensors": report.tensors_total,
                "size_bytes": report.size_bytes,
                "small_files": list(report.small_files),
                "compression": asdict(report.compression) if report.compression else None,
            }
        )
    else:
        say(
            f"saved {order.name}: {report.tensors_total} tensors, {format_size(report.size_bytes)},"
            f" from {report.source_format}, at {target}"
        )
        if report.compression is not None:
            say(report.compression.summary)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What to save under which name. `local` is None for something on the hub."""

    name: str
    hub_name: str
    local: Path | None
    storage_path: Path
    dtype: str
    max_shard_bytes: int
    threads: int | None
    compress: bool


def _parse(options: dict[str, Any]) -> _Order:
    """Return the order; raise UsageError for options that do not go together."""
    with if_running(None) as client:
        storage_path = storage_root(client, options["storage_path"])
    model, adapter = options["model"], options["adapter_name"]
    if options["adapter"] and not adapter:
        raise click.UsageError("--adapter needs --adapter-name: say which adapter to save")
    if options["tensor_parallel_size"] != 1:
        raise click.UsageError(
            "--tensor-parallel-size: the transformers backend saves one checkpoint for any number "
            "of GPUs; leave it out"
        )
    wanted = adapter or model
    source = options["source"]
    if (source is None) == (wanted is None):
        raise click.UsageError("say once what to save: --model, --adapter-name or --source")
    name = options["name"]
    if source is None and model and not adapter and options["local_model_path"]:
        source, name = options["local_model_path"], name or model
    elif source is None and Path(wanted).expanduser().exists():
        source = Path(wanted).expanduser()
    return _Order(
        name=_checked_name(name or (wanted if source is None else _name_of(source))),
        hub_name=wanted or "",
        local=source,
        storage_path=storage_path,
        dtype=options["dtype"],
        max_shard_bytes=options["max_shard_bytes"],
        threads=options["threads"],
        compress=options["compress"],
    )


def _name_of(path: Path) -> str:
    whole = path.resolve()
    return whole.stem if whole.suffix in {".gguf", ".safetensors"} else whole.name


def _checked_name(name: str) -> str:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or parts[0].startswith("."):
        raise click.UsageError(f"--name {name!r}: use a relative path without '..'")
    return name


def _fetch(order: _Order) -> Path:
    """Return the directory of a hub's model, downloaded or from the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise InvalidRequestError(
            f"{order.hub_name} is no path, and fetching it from the hub needs huggingface_hub: "
            "pip install 'serverless-llm[transformers]'"
        ) from error
    try:
        directory = snapshot_download(order.hub_name, allow_patterns=list(_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointNotFoundError(
            f"{order.hub_name} is no path here, and the Hugging Face hub does not give it: {error}"
        ) from error
    return Path(directory)


def _require_adapter(source: Path) -> None:
    if not (source / _ADAPTER_CONFIG).exists():
        raise InvalidRequestError(
            f"{source} has no {_ADAPTER_CONFIG}, so it is no adapter: save a model with --model"
        )


def _size_after(source: Path, order: _Order) -> int:
    """Return how large the checkpoint will be; raise if the source cannot be opened."""
    from sllm_store.checkpoint.reader import open_checkpoint

    checkpoint = open_checkpoint(source)
    if order.dtype == "auto" and checkpoint.format != "gguf":
        return checkpoint.size_bytes
    return sum(_cast_bytes(checkpoint, name, order.dtype) for name in checkpoint.all_tensors())


def _cast_bytes(checkpoint: Checkpoint, name: str, dtype: str) -> int:
    from sllm_store.checkpoint.dtype import contiguous_bytes

    tensor = checkpoint.all_tensors()[name]
    if tensor.is_blocks:
        return contiguous_bytes("float32" if dtype == "auto" else dtype, tensor.shape)
    floating = "float" in tensor.dtype
    return contiguous_bytes(dtype if floating and dtype != "auto" else tensor.dtype, tensor.shape)
