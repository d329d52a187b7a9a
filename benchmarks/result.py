"""What every benchmark writes: one JSON with the question, the machine, the versions, the command.

It is written again after every row, so that a run that is cut short leaves what it had.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
_PACKAGES = (
    "safetensors",
    "transformers",
    "fastsafetensors",
    "instanttensor",
    "runai-model-streamer",
    "serverless-llm",
)


class Result:
    """One run of one benchmark."""

    def __init__(self, question: str, *, out: Path, device: str, commit: str = "") -> None:
        """Describe the run; `out` is where it goes. From now on prints show line by line."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
        self.rows: list[dict[str, Any]] = []
        self._out = out
        self._content: dict[str, Any] = {
            "question": question,
            "commit": commit or find_commit(),
            "command": command(),
            "hardware": hardware(device),
            "versions": versions(),
            "limits": {},
        }

    def describe(self, **facts: Any) -> None:
        """Add or replace facts about the run."""
        self._content |= facts
        self.save()

    def limit(self, **limits: float) -> None:
        """Note what a link was measured to do; of several measurements the best counts."""
        known = self._content["limits"]
        for name, rate in limits.items():
            known[name] = max(rate, known.get(name, 0.0))
        self.save()

    @property
    def limits(self) -> dict[str, float]:
        """What the machine's links were measured to do, in GB/s."""
        return dict(self._content["limits"])

    def add(self, row: dict[str, Any]) -> None:
        """Add a row and write the file."""
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Write everything so far."""
        self._out.parent.mkdir(parents=True, exist_ok=True)
        content = self._content | {"rows": self.rows}
        self._out.write_text(json.dumps(content, indent=1) + "\n")


def rates(size_bytes: int, seconds: Sequence[float]) -> dict[str, float]:
    """Return the rates of loads that took so long, of the first one and the median, in GB/s."""
    return {
        "gb_per_s_first": size_bytes / seconds[0] / 1e9,
        "gb_per_s_median": size_bytes / statistics.median(seconds) / 1e9,
    }


def hardware(device: str) -> dict[str, Any]:
    """Say what this runs on."""
    return {
        "device": torch.cuda.get_device_name(0) if device != "cpu" else _processor(),
        "gpus": torch.cuda.device_count(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str]:
    """Return the version of each loader's package."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def command() -> str:
    """Return the command that runs, without what differs from machine to machine."""
    module = Path(sys.argv[0]).stem
    arguments: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        name, _, value = argument.partition("=")
        if name in {"--work", "--out", "--commit", "--prefetch-path", "--smollm2"}:
            if not value:
                next(given, None)
            continue
        arguments.append(f'"{argument}"' if " " in argument else argument)
    return " ".join(["python -m", f"benchmarks.{module}", *arguments])


def find_commit() -> str:
    """Return the commit that is checked out, with + where files differ from it."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
