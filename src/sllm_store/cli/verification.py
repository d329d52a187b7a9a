"""`sllm-store verify`: read a checkpoint from disk again, and compare its checksums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sllm_store.cli.connection import if_running
from sllm_store.cli.finding import find
from sllm_store.cli.options import (
    address_option,
    json_option,
    name_argument,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import progress, say, say_json
from sllm_store.cli.watched import run_watched

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.verify import Report


@click.command()
@name_argument
@click.option(
    "--num-threads",
    "threads",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Threads that read.",
)
@address_option
@storage_path_option
@json_option
@verbose_option
def verify(
    *, name: str, threads: int, address: str | None, storage_path: Path | None, as_json: bool
) -> None:
    """Check every byte of a checkpoint.

    All of it is read from disk and compared with what was saved; what is compressed is compared as
    it is stored, and again decoded. Exits with 1 if a byte is wrong
    or cannot be read.
    """
    from sllm_store.checkpoint.verify import verify_checkpoint

    with if_running(address) as client:
        found = find(name, client, storage_path)
    checkpoint = found.open()
    with progress(f"verifying {found.name}") as on_progress:
        report = run_watched(
            lambda control: verify_checkpoint(checkpoint, threads=threads, control=control),
            bytes_total=checkpoint.stored_bytes,
            on_progress=on_progress,
        )
    if as_json:
        say_json(_described(found.name, report))
    else:
        for problem in report.problems:
            say(str(problem))
        if not report.problems:
            say(f"{found.name}: {report.summary}")
    report.require_good()


def _described(name: str, report: Report) -> dict[str, object]:
    return {
        "name": name,
        "good": not report.problems,
        "bytes_read": report.bytes_read,
        "bytes_decoded": report.bytes_decoded,
        "extents_total": report.extents_total,
        "extents_compared": report.extents_compared,
        "problems": [
            {
                "path": str(problem.path),
                "offset": problem.offset,
                "size_bytes": problem.size_bytes,
                "tensors": list(problem.tensors),
                "what": problem.what,
            }
            for problem in report.problems
        ],
    }
