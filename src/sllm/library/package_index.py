"""Download one distribution from the Python package index that pip is set up for, and check it.

pip does it, so mirrors, proxies and offline directories that are configured for pip are used.
Nothing is installed.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING

from sllm.core.errors import PullError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DOWNLOAD_TIMEOUT_S = 1800.0
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_WORDS_MAX = 400


def download(
    requirement: str,
    sha256: str,
    directory: Path,
    *,
    kind: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download one distribution into an empty directory, and return its path.

    kind is 'binary' (a wheel) or 'source'. on_progress gets bytes done and total; what it raises
    ends the download. Raises PullError, also when the sha256 is another.
    """
    other = "--no-binary" if kind == "source" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw"] if on_progress else ["--quiet"]
    command += ["--no-deps", other, ":all:", "--dest", str(directory), requirement]
    _run(command, requirement, on_progress or _ignore)
    found = list(directory.iterdir())
    if len(found) != 1:
        raise PullError(f"pip left {len(found)} files for {requirement}, not one: try again")
    require_sha256(found[0], sha256)
    return found[0]


def require_sha256(path: Path, expected: str) -> None:
    """Raise PullError unless a file has this SHA-256."""
    found = sha256_of(path)
    if found != expected:
        raise PullError(
            f"{path.name} has sha256 {found}, expected {expected}: pip's index served another "
            "file; nothing was kept"
        )


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str], requirement: str, on_progress: Callable[[int, int], None]) -> None:
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(DOWNLOAD_TIMEOUT_S, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if progress := _PROGRESS.match(line):
                    on_progress(int(progress[1]), int(progress[2]))
            process.wait()
        finally:
            timer.cancel()
            process.kill()
        if late.is_set():
            raise PullError(
                f"downloading {requirement} took longer than {DOWNLOAD_TIMEOUT_S:.0f} s: try again"
            )
        if process.returncode:
            raise PullError(
                f"pip could not download {requirement} (exit status {process.returncode}): check "
                f"the network and the index that pip uses; pip says: {_last_words(errors)}"
            )


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    words = " ".join(errors.read().decode(errors="replace").split())
    return words[-_WORDS_MAX:] or "nothing"


def _ignore(done: int, total: int) -> None:
    del done, total
