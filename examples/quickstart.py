"""A real model through the store, then a chat with it: fetch, import, load, time loads, `gdsllm`.

`make run`, or `python -m examples.quickstart "a question"` from the root of the repository. The
first run downloads 90 MB; afterwards it works offline. Everything it starts ends with it.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sllm.cli.environment import read_files
from sllm.core.errors import ModelNotFoundError, ServingError
from sllm.library.models import Library
from sllm.library.origins import Origins
from sllm.library.places import model_root
from sllm.library.smollm2 import default_cache, fetch
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.verify import verify_checkpoint
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import CheckpointNotFoundError, InvalidCheckpointError, StoreError
from sllm_store.units import align_up, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sllm_store.checkpoint.model import Checkpoint

QUESTION = "What is the capital of France?"
MODEL = "SmolLM2-135M-Instruct"
CHAT_MODEL = "smollm2:135m"
ANSWER_TOKENS_MAX = 256
POOL_GRANULE_BYTES = 64 << 20
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class QuickstartError(RuntimeError):
    """A step that did not work; the message says which, and what to do."""


def main() -> None:
    """Run the example; leave by its exit status, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="quickstart", description=(__doc__ or "").split(":")[0])
    parser.add_argument("question", nargs="?", help="answer this, and end without a chat")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where models are kept")
    arguments = parser.parse_args()
    console = Console()
    environment = dict(os.environ)
    read_files(environment, Path.cwd())
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        with console.status("fetching the model"):
            source = fetch(arguments.cache)
        run(source, arguments.cache, arguments.question or QUESTION, console)
        chat(arguments.question, arguments.cache, environment, console)
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left running")
        sys.exit(130)
    except (QuickstartError, ServingError, StoreError, OSError) as error:
        sys.exit(f"quickstart: {error}")


def run(source: Path, cache: Path, question: str, console: Console) -> None:
    """Import `source` into the cache, serve it, ask it, and time its loads."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    models = cache / "models"
    checkpoint = import_model(source, models / MODEL, console)
    pool_bytes = align_up(checkpoint.size_bytes, POOL_GRANULE_BYTES) + POOL_GRANULE_BYTES
    with running_store(models, pool_bytes) as address:
        with console.status("importing PyTorch and Transformers"):
            from examples.load_times import Contest, show

            device = _choose_device()
        console.print(f"the store is ready at {address}", highlight=False)
        ask(models, question, address=address, device=device, console=console)
        with console.status("timing loads"):
            copy = copy_as_safetensors(checkpoint, cache / f"{MODEL}.safetensors")
            contest = Contest(
                address=address,
                name=MODEL,
                directory=checkpoint.path,
                safetensors=copy,
                device=device,
            )
            times = contest.run()
        show(times, checkpoint.size_bytes, device, console)
    if not all(one.equal for one in times):
        raise QuickstartError("a load gave other bytes than the file has: please report this")


def import_model(source: Path, target: Path, console: Console) -> Checkpoint:
    """Import a checkpoint as float32 unless it was already; it appears whole or not at all."""
    try:
        return open_checkpoint(target)
    except (CheckpointNotFoundError, InvalidCheckpointError):
        target.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    started_s = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"importing {source.name}")
        report = import_checkpoint(
            source,
            target,
            dtype="float32",
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(
        f"imported {source.name}: {report.tensors_total} tensors, "
        f"{format_size(report.size_bytes)} as float32, in {time.monotonic() - started_s:.1f} s",
        highlight=False,
    )
    return open_checkpoint(target)


def copy_as_safetensors(checkpoint: Checkpoint, target: Path) -> Path:
    """Write the checkpoint's tensors as one safetensors file too, unless that was done already.

    The checkpoint is verified against its checksums first.
    """
    from safetensors.torch import save_file

    from examples.load_times import copied_version
    from sllm_store.torch import load_dict

    if copied_version(target) == checkpoint.version:
        return target
    verify_checkpoint(checkpoint).require_good()
    tensors = dict(load_dict(checkpoint.path, "cpu", store="in-process"))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as directory:
        written = Path(directory) / target.name
        save_file(tensors, written, metadata={"version": checkpoint.version})
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(target)
    return target


@contextmanager
def running_store(storage: Path, pool_bytes: int) -> Iterator[str]:
    """Run a store on a socket of its own; yield its address, and stop it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="sllm-quickstart-") as directory:
        socket, log = Path(directory, "store.sock"), Path(directory, "store.log")
        command = [sys.executable, "-m", "sllm_store.cli", "start", "--socket", str(socket)]
        command += ["--storage-path", str(storage), "--mem-pool-size", str(pool_bytes)]
        with (
            log.open("wb") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            try:
                _wait_until_ready(process, log)
                yield f"unix:{socket}"
            finally:
                _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the line with which the store says that it answers."""
    assert process.stdout is not None
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    said = b""
    while b"ready at " not in said:
        left_s = max(0.0, deadline_s - time.monotonic())
        readable, _, _ = select.select([process.stdout], [], [], left_s)
        piece = os.read(process.stdout.fileno(), 4096) if readable else b""
        if not piece:
            what = "ended" if readable else f"was not ready after {READY_TIMEOUT_S:.0f} s"
            raise QuickstartError(f"the store {what}; its log:\n{log.read_text()[-2000:]}")
        said += piece


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the store in order; one that does not end in time is killed."""
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    finally:
        process.kill()


def ask(models: Path, question: str, *, address: str, device: str, console: Console) -> None:
    """Load the model through the store and print its answer while it is made."""
    import transformers

    from examples.load_times import synchronise
    from sllm_store.transformers import load_model

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(models / MODEL)
    started_s = time.perf_counter()
    model: Any = load_model(MODEL, device_map=device, storage_path=models, store=address)
    synchronise(device)
    console.print(
        f"loaded {MODEL} through it in {time.perf_counter() - started_s:.2f} s "
        f"({sum(1 for _ in model.parameters())} tensors on {device})\n",
        highlight=False,
    )
    console.print(question, style="bold", markup=False, highlight=False)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(device)
    started_s = time.perf_counter()
    answered = model.generate(
        **prompt,
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS_MAX,
        streamer=_make_streamer(tokenizer, console),
    )
    tokens = answered.shape[1] - prompt["input_ids"].shape[1]
    rate = tokens / (time.perf_counter() - started_s)
    console.print(f"({tokens} tokens, {rate:.0f} a second)\n", style="dim", highlight=False)


def _make_streamer(tokenizer: Any, console: Console) -> Any:
    """Return a streamer that writes each token as soon as it is a whole piece of text."""
    from transformers import TextStreamer

    class ConsoleStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class's signature
            console.out(text, end="\n" if stream_end else "", highlight=False)

    return ConsoleStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def chat(
    question: str | None, cache: Path, environment: Mapping[str, str], console: Console
) -> NoReturn:
    """Become `gdsllm run`: a chat on a terminal unless there is a question, else one answer.

    The model is a person's own from here on, under their model root; its file comes out of the
    cache.
    """
    library = Library(model_root(environment), origins=Origins(cache=cache))
    try:
        library.get(CHAT_MODEL)
    except ModelNotFoundError:
        library.pull(CHAT_MODEL, lambda progress: None)
    command = [sys.executable, "-m", "sllm.cli", "run", CHAT_MODEL]
    shown = f"gdsllm run {CHAT_MODEL}"
    if question is None and sys.stdin.isatty() and sys.stdout.isatty():
        console.print(f"\nnow a chat, by `{shown}`; /bye leaves", highlight=False)
    else:
        command += ["--max-tokens", str(ANSWER_TOKENS_MAX), "--temperature", "0"]
        command += ["--verbose", "--prompt", question or QUESTION]
        console.print(f"\nthe same from its 4 bits, by `{shown}`:", highlight=False)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, sys.stdin.fileno())
        os.close(nothing)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def _choose_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _interrupt(number: int, frame: object) -> None:
    """Let SIGTERM and SIGHUP end the example as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
