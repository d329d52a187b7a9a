"""Ctrl-C at the moment when a command imports a module."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import importlib, os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

package, module = sys.argv[1:]
sys.meta_path.insert(0, Interrupts())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[1:] = ["--help"]
importlib.import_module(package).main()
"""


def interrupt_import(package: str, module: str) -> tuple[int, str, str]:
    """Run `package`'s main with --help, interrupted there; return its code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, package, module],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
