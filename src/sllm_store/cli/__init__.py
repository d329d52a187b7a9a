"""The command `sllm-store`. Commands import what they need when they run: --help stays light."""

from __future__ import annotations

import sys

PROGRAM = "sllm-store"
INTERRUPTED = 130

__all__ = ["INTERRUPTED", "PROGRAM", "main"]


def main() -> None:
    """Run the command: the entry point of the console script.

    Ctrl-C ends it without a traceback, also while the commands themselves are imported.
    """
    try:
        from sllm_store.cli.root import cli

        cli.main(prog_name=PROGRAM)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
