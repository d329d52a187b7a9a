"""Fetch llama.cpp's vocabularies with their golden token ids: `python -m tests.fetch_vocabularies`.

They come out of the sdist of `llama-cpp-python` (MIT), which is checked and thrown away. The tests
look for them in SLLM_VOCABULARIES, or .cache/llama-vocab of the repository, and skip without.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from sllm.core.errors import PullError
from sllm.library.package_index import download

REQUIREMENT = "llama-cpp-python==0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FILES_TOTAL = 49

_MEMBER = re.compile(r"[^/]+/vendor/llama\.cpp/models/(ggml-vocab-[a-z0-9-]+\.gguf(\.inp|\.out)?)")


def default_directory() -> Path:
    """Return where the tests look for the vocabularies."""
    configured = os.environ.get("SLLM_VOCABULARIES")
    return Path(configured) if configured else Path(__file__).parents[1] / ".cache/llama-vocab"


def fetch(directory: Path) -> Path:
    """Return the directory, filled when it is not there yet; it appears whole or not at all."""
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetch-") as temporary:
        downloads, unpacked = Path(temporary, "sdist"), Path(temporary, "vocabularies")
        downloads.mkdir()
        unpacked.mkdir()
        _unpack(download(REQUIREMENT, SDIST_SHA256, downloads, kind="source"), unpacked)
        unpacked.rename(directory)
    return directory


def _unpack(sdist: Path, directory: Path) -> None:
    with tarfile.open(sdist) as archive:
        for member in archive:
            matched = _MEMBER.fullmatch(member.name)
            source = archive.extractfile(member) if matched and member.isreg() else None
            if matched and source is not None:
                with source, (directory / matched[1]).open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    found = len(list(directory.iterdir()))
    if found != FILES_TOTAL:
        raise PullError(f"{sdist.name} has {found} files of vocabularies, expected {FILES_TOTAL}")


def main() -> None:
    """Fetch, and write the directory's path to stdout."""
    try:
        sys.stdout.write(f"{fetch(default_directory())}\n")
    except PullError as error:
        sys.exit(f"fetch_vocabularies: {error}")


if __name__ == "__main__":
    main()
