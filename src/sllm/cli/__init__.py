"""The command `gdsllm`. Commands import what they need when they run: --help stays light."""

from __future__ import annotations

from sllm.cli.root import cli

PROGRAM = "gdsllm"

__all__ = ["PROGRAM", "cli", "main"]


def main() -> None:
    """Run the command: the entry point of the console script."""
    cli.main(prog_name=PROGRAM)
