"""Hub: fetch a model's files from Hugging Face.

A connection that breaks is taken up where it broke, and files that have arrived are kept for the
next try. A file that was on its way when the process ended is fetched again: huggingface_hub keeps
no half files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm.core.errors import PullError, ServingError
from sllm.library.gguf_beginning import fetch_beginning
from sllm.library.hub_files import HubFile, choose_files
from sllm.library.model import Progress
from sllm.library.names import LATEST
from sllm.library.package_index import sha256_of
from sllm.library.storage import place, require_room
from sllm_store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sllm.library.hub_files import Choice
    from sllm.library.names import ModelName

NAME = "Hugging Face"
_TIMEOUT_S = 30.0
_CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """How Hugging Face is reached. cache: where downloads are kept, None for no longer than needed.

    endpoint: another hub; None for the usual one. check: given a model's config.json, or its GGUF
    without its weights, and its name, before weights are fetched; what it raises ends the pull.
    """

    token: str | None = None
    cache: Path | None = None
    endpoint: str | None = None
    check: Callable[[Path, str], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A fetched model: its identity, its checkpoint's path in the directory, the commit."""

    identity: str
    path: str
    source: str


@contextmanager
def fetched_from_hub(  # noqa: PLR0917 - what, from where, to where.
    hub: Hub,
    name: ModelName,
    directory: Path,
    downloads: Path,
    on_progress: Callable[[Progress], None],
) -> Iterator[HubModel]:
    """Fill a directory with a model's files. When the context ends well, its downloads go.

    downloads: where they are kept until then, if the hub has no cache. Raises PullError, and what
    on_progress raises; the next try goes on where this one ended.
    """
    with ExitStack() as stack:
        cache = hub.cache or stack.enter_context(_own_cache(downloads, name))
        with _translated(name):
            commit, files = _list_files(hub, name)
            choice = choose_files(name.model, files, name.tag)
            named_by = "GDSLLM_MODEL_ROOT" if hub.cache is None else "GDSLLM_HF_CACHE"
            _require_room(name, commit, choice, cache, named_by=named_by)
            if hub.check is not None and choice.path != ".":
                _check_ggufs(hub, name, commit, choice)
            for file in choice.files:
                path = _download(hub, name, commit, file, cache, on_progress)
                if file.name == _CONFIG and hub.check is not None:
                    hub.check(path, name.model)
                place(path, directory / file.name, may_link=hub.cache is not None)
        yield HubModel(
            identity=f"hub-{_identity(choice)}",
            path=choice.path,
            source=f"hf.co/{name.model}@{commit}",
        )
        if hub.cache is None:
            shutil.rmtree(cache, ignore_errors=True)


@contextmanager
def _own_cache(downloads: Path, name: ModelName) -> Iterator[Path]:
    """Yield a cache for one name, which one process at a time may fill."""
    downloads.mkdir(parents=True, exist_ok=True)
    with (downloads / f"{name.key}.lock").open("ab") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(f"{name} is being pulled already: wait for that to end") from None
        yield downloads / name.key


def _list_files(hub: Hub, name: ModelName) -> tuple[str, list[HubFile]]:
    """Return a commit and its files; a tag that is no quantisation may be a revision."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi(endpoint=hub.endpoint, token=_token(hub))
    info = None
    if name.tag != LATEST:
        try:
            info = api.model_info(
                name.model, revision=name.tag, files_metadata=True, timeout=_TIMEOUT_S
            )
        except RevisionNotFoundError:
            info = None  # The tag is a quantisation, then.
    if info is None:
        info = api.model_info(name.model, files_metadata=True, timeout=_TIMEOUT_S)
    return str(info.sha), [
        HubFile(
            name=sibling.rfilename,
            size_bytes=sibling.size or 0,
            blob=sibling.blob_id or "",
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
        )
        for sibling in info.siblings or ()
    ]


def _require_room(
    name: ModelName, commit: str, choice: Choice, cache: Path, *, named_by: str
) -> None:
    """Raise PullError if what has not arrived yet is more than the cache's disk has room for."""
    from huggingface_hub import try_to_load_from_cache

    missing_bytes = sum(
        file.size_bytes
        for file in choice.files
        if not isinstance(
            try_to_load_from_cache(name.model, file.name, cache_dir=cache, revision=commit), str
        )
    )
    cache.mkdir(parents=True, exist_ok=True)
    require_room(cache, missing_bytes, what=str(name), named_by=named_by)


def _check_ggufs(hub: Hub, name: ModelName, commit: str, choice: Choice) -> None:
    """Raise what the hub's check does, of headers that are fetched alone."""
    from huggingface_hub import hf_hub_url

    assert hub.check is not None
    with tempfile.TemporaryDirectory(prefix="gdsllm-") as temporary:
        for file in choice.files:
            url = hf_hub_url(name.model, file.name, revision=commit, endpoint=hub.endpoint)
            target = Path(temporary) / file.name
            if not fetch_beginning(url, target, size_bytes=file.size_bytes, token=hub.token):
                return  # It is checked when it is whole.
        try:
            hub.check(Path(temporary) / choice.path, name.model)
        except (ServingError, StoreError) as error:
            reason = str(error).replace(f"{temporary}/", "")
            raise PullError(f"{name.model} was not fetched: {reason}") from error


def _download(  # noqa: PLR0917 - one file of one commit, from one place to another.
    hub: Hub,
    name: ModelName,
    commit: str,
    file: HubFile,
    cache: Path,
    on_progress: Callable[[Progress], None],
) -> Path:
    from huggingface_hub import hf_hub_download

    digest = f"sha256:{file.sha256}" if file.sha256 else f"sha1:{file.blob}"
    report = partial(Progress, status=f"pulling {file.name}", digest=digest, total=file.size_bytes)
    on_progress(report(completed=0))
    path = Path(
        hf_hub_download(
            name.model,
            file.name,
            revision=commit,
            cache_dir=cache,
            token=_token(hub),
            endpoint=hub.endpoint,
            tqdm_class=_bar_class(lambda done: on_progress(report(completed=done))),
        )
    )
    on_progress(report(completed=file.size_bytes))
    if file.sha256 is not None:
        on_progress(Progress(status="verifying sha256 digest", digest=digest))
        if sha256_of(path) != file.sha256:
            path.resolve().unlink()
            raise PullError(f"{file.name} of {name} arrived with other bytes: pull again")
    return path


def _bar_class(report: Callable[[int], None]) -> Any:
    """Return what huggingface_hub takes for a progress bar: one that shows nothing, and reports."""
    from tqdm import tqdm

    most = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *, initial: int = 0, total: float | None = None, **shown: Any) -> None:
            super().__init__(initial=initial, total=total, disable=True)
            self._done = initial

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self._done += int(n or 0)
            if self._done > most:  # A retry counts again, and so does a second bar of one file.
                most = self._done
                report(most)

    return Bar


@contextmanager
def _translated(name: ModelName) -> Iterator[None]:
    """Turn what huggingface_hub raises into what a person can do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PullError(
            f"{name.model} asks for its terms to be accepted: do so on https://hf.co/{name.model}, "
            "then set HUGGINGFACE_HUB_TOKEN to a token of yours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PullError(
            f"{NAME} has no model {name.model}, or only for its members: check the name, and set "
            "HUGGINGFACE_HUB_TOKEN if it is private"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise PullError(f"{NAME} cannot be reached for {name.model}: {_reason(error)}") from error
    except errors.HFValidationError as error:
        raise PullError(f"{name.model} is no name of {NAME}'s: {_reason(error)}") from error
    except errors.HfHubHTTPError as error:
        raise PullError(f"{NAME} refused {name.model}: {_reason(error)}") from error
    except Exception as error:
        # The transport's own errors: its module differs from one version of the hub to the next.
        if type(error).__module__.partition(".")[0] not in {"httpx", "httpx2", "httpcore"}:
            raise
        raise PullError(
            f"{NAME} cannot be reached for {name.model} ({_reason(error)}): check the network and "
            "pull again; what has arrived is kept"
        ) from error


def _identity(choice: Choice) -> str:
    contents = [(file.name, file.sha256 or file.blob) for file in choice.files]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _token(hub: Hub) -> str | bool:
    return hub.token or False


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
