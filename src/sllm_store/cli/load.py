"""`sllm-store load`: load a model through the store, let it write, say how fast it was."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sllm_store.cli.connection import if_running
from sllm_store.cli.finding import find
from sllm_store.cli.options import (
    Backend,
    CheckpointName,
    json_option,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import note, progress, say, say_facts, say_json
from sllm_store.errors import InvalidRequestError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROMPT = "Hello, my dog is cute"
_ROUTE_LOG = "sllm_store.torch.route"
_PRECISIONS: dict[str, dict[str, object]] = {
    "int8": {"load_in_8bit": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@click.command()
@click.option(
    "--model",
    required=True,
    type=CheckpointName(),
    metavar="NAME",
    help="A checkpoint under the storage path, or a path to one.",
)
@click.option(
    "--backend",
    type=Backend(),
    metavar="transformers",
    default="transformers",
    show_default=True,
    help="What loads it.",
)
@click.option("--adapter", is_flag=True, help="Load a LoRA adapter: the one of --adapter-name.")
@click.option("--adapter-name", metavar="NAME", help="A LoRA adapter to load on the model.")
@click.option(
    "--precision",
    type=click.Choice(tuple(_PRECISIONS)),
    help="Quantise while loading; needs bitsandbytes.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, or auto: all GPUs, else the CPU.",
)
@click.option(
    "--dtype", default="auto", show_default=True, help="Cast to it; auto keeps what is stored."
)
@click.option("--prompt", default=_PROMPT, show_default=True, help="Text to continue.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Tokens to write at most; 0 loads only.",
)
@click.option(
    "--store",
    "--address",
    "store",
    metavar="ADDRESS",
    help="The store to load through, or in-process.  [default: the running one, else in-process]",
)
@storage_path_option
@json_option
@verbose_option
def load(*, as_json: bool, **options: Any) -> None:
    """Load a model and let it write.

    It continues the prompt, always in the same way, and says how fast the load was.
    """
    if options["adapter"] and not options["adapter_name"]:
        raise click.UsageError("--adapter needs --adapter-name: say which adapter to load")
    _require_packages()
    loaded = _load(options)
    text = _generate(loaded.model, loaded.directory, options)
    figures = loaded.figures
    if as_json:
        say_json({"model": options["model"], "prompt": options["prompt"], "text": text, **figures})
        return
    if text is not None:
        say(text)
    say_facts(
        [
            ("loaded", f"{format_size(figures['size_bytes'])} in {figures['load_s']:.2f} s"),
            ("bytes moved in", f"{figures['move_s']:.2f} s, {figures['gb_per_s']:.2f} GB/s"),
            ("from", f"{figures['tier']}, by {figures['store']}"),
            ("device", figures["device"]),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedModel:
    model: Any
    directory: str
    figures: dict[str, Any]


def _require_packages() -> None:
    try:
        import torch  # noqa: F401 - loading needs both.
        import transformers  # noqa: F401
    except ImportError as error:
        raise InvalidRequestError(
            f"loading a model needs the package {error.name}: run "
            "pip install 'serverless-llm[transformers]'"
        ) from error


def _load(options: dict[str, Any]) -> _LoadedModel:
    from sllm_store.transformers import load_model

    precision = options["precision"]
    where = {"storage_path": options["storage_path"], "store": options["store"]}
    model_name, adapter_name = _names(options)
    with _heard_loads() as loads, progress(f"loading {options['model']}") as on_progress:
        started_s = time.perf_counter()
        model: Any = load_model(
            model_name,
            options["device"],
            dtype=options["dtype"],
            quantization_config=_PRECISIONS[precision] if precision else None,
            on_progress=on_progress,
            **where,
        )
        if adapter_name:
            from sllm_store.transformers import load_lora

            model = load_lora(model, "default", adapter_name, **where)
        _synchronize(model)
        load_s = time.perf_counter() - started_s
    size_bytes = sum(record.size_bytes for record in loads)
    move_s = sum(record.load_s for record in loads)
    return _LoadedModel(
        model=model,
        directory=model.base_model.model.name_or_path if adapter_name else model.name_or_path,
        figures={
            "size_bytes": size_bytes,
            "load_s": load_s,
            "move_s": move_s,
            "gb_per_s": size_bytes / move_s / 1e9 if move_s else 0.0,
            "tier": ", ".join(dict.fromkeys(record.tier for record in loads)),
            "store": ", ".join(dict.fromkeys(record.store for record in loads)),
            "device": str(model.device),
        },
    )


def _names(options: dict[str, Any]) -> tuple[str, str | None]:
    """Return the names of model and adapter; in-process, those of a running store are paths."""
    from sllm_store.torch.route import IN_PROCESS

    model, adapter = options["model"], options["adapter_name"]
    if options["store"] != IN_PROCESS:
        return model, adapter
    with if_running(None) as client:
        model, adapter = (
            name and str(find(name, client, options["storage_path"]).path)
            for name in (model, adapter)
        )
    return model, adapter


def _synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        import torch

        torch.cuda.synchronize(model.device)


def _generate(model: Any, directory: str, options: dict[str, Any]) -> str | None:
    """Return the prompt continued, None if there is nothing to continue it with."""
    if not options["max_new_tokens"] or not model.can_generate():
        return None
    import torch
    from transformers import AutoTokenizer

    try:
        with _tokenizer_files(Path(directory)) as files:
            tokenizer: Any = AutoTokenizer.from_pretrained(files)
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        note(f"no tokenizer in {directory}, so no text is written: {reason}", verdict="warn")
        return None
    inputs = tokenizer(options["prompt"], return_tensors="pt").to(model.device)
    if not inputs["input_ids"].numel():
        raise InvalidRequestError(f"--prompt {options['prompt']!r} has no tokens: write some text")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=options["max_new_tokens"], do_sample=False)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


@contextmanager
def _tokenizer_files(model: Path) -> Iterator[Path]:
    """Yield the directory with a model's tokenizer; a GGUF's is made from its vocabulary."""
    from sllm_store.checkpoint import gguf
    from sllm_store.checkpoint.reader import open_checkpoint
    from sllm_store.convert.importer import carry_small_files

    if open_checkpoint(model).format != gguf.FORMAT:
        yield model
        return
    with TemporaryDirectory() as made:
        carry_small_files(model, Path(made))
        yield Path(made)


@contextmanager
def _heard_loads() -> Iterator[list[Any]]:
    """Yield the list of loads that happen meanwhile, as the log tells them."""
    records: list[Any] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "tier"):
                records.append(record)

    log = logging.getLogger(_ROUTE_LOG)
    listener, level = Listener(), log.level
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        yield records
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
