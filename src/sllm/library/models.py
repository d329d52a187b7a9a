"""Library: the models on this machine, by name.

Names are manifests and bytes are shared: a copy costs nothing, and what a local path names is used
where it is. Every change is one rename, under a lock that any number of processes share.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm.core.errors import InvalidRequestError, LibraryError, ModelNotFoundError
from sllm.library.description import describe
from sllm.library.fingerprint import fingerprint, small_files
from sllm.library.manifest import Manifest, Manifests
from sllm.library.model import Overrides, Progress
from sllm.library.names import ModelName, nearest
from sllm.library.origins import Origins
from sllm.library.places import model_root
from sllm.library.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sllm.library.model import Message, Model
    from sllm.library.origins import Fetched


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Library:
    """The models under a root. Safe among threads and processes.

    origins: where pulls come from; the default reads no environment. now: the clock. check: given
    a checkpoint on disk and what to call it, before it is taken in; what it raises ends that.
    """

    def __init__(
        self,
        root: Path,
        *,
        origins: Origins | None = None,
        now: Callable[[], datetime] = _utc_now,
        check: Callable[[Path, str], None] | None = None,
    ) -> None:
        self.root = root.expanduser().absolute()
        self._storage = Storage(self.root)
        self._manifests = Manifests(self.root / "manifests")
        self._origins = origins or Origins()
        self._now = now
        self._check = check

    @classmethod
    def open(
        cls,
        environment: Mapping[str, str],
        root: Path | None = None,
        *,
        check: Callable[[Path, str], None] | None = None,
    ) -> Library:
        """Return the library that the environment's variables describe, or the one at a root.

        check: raises for what is not to be fetched, or taken in; see sllm.library.hub.Hub.
        """
        origins = Origins.from_environment(environment, check=check)
        return cls(root or model_root(environment), origins=origins, check=check)

    def list(self, on_damaged: Callable[[LibraryError], None] = lambda error: None) -> list[Model]:
        """Return every model, in the order of names; records that cannot be read are told."""
        manifests = self._manifests.read_all(on_damaged)
        return [manifest.model(self._storage.files) for manifest in manifests]

    def get(self, name: str) -> Model:
        """Return a model; its `problem` says so if its files are gone.

        `org/name` may be called `name` where that is clear. Raises ModelNotFoundError with what
        may have been meant, InvalidRequestError for what is no name.
        """
        return self._find(name).model(self._storage.files)

    def copy(self, source: str, destination: str) -> Model:
        """Give a model a second name, replacing what has that."""
        target = ModelName.parse(destination)
        with self._storage.lock():
            found = self._find(source)
            return self._publish(replace(found, name=target, modified_at=self._now()))

    def remove(self, name: str) -> None:
        """Remove a name, and the files under the root that no other name uses."""
        parsed = ModelName.parse(name)
        with self._storage.lock():
            if not self._manifests.has(parsed):
                parsed = self._find(name).name
            self._manifests.remove(parsed)
            self._sweep()

    def create(  # noqa: PLR0913 - what a model can be made of, each with a default.
        self,
        name: str,
        *,
        source: str | Path,
        template: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        license: str | None = None,  # noqa: A002 - Ollama's word.
        messages: Sequence[Message] | None = None,
    ) -> Model:
        """Make a model out of another one (a str) or of a checkpoint on disk (a Path).

        What is given replaces what the source has; parameters are merged. The checkpoint is used
        where it is.
        """
        target = ModelName.parse(name)
        given = Overrides(
            template=template,
            system=system,
            parameters=dict(parameters or {}),
            license=license,
            messages=tuple((role, text) for role, text in messages or ()),
        )
        if isinstance(source, Path):
            manifest = self._describe_in_place(target, source)
            with self._storage.lock():
                return self._publish(replace(manifest, overrides=given))
        with self._storage.lock():
            found = self._find(source)
            return self._publish(
                replace(
                    found,
                    name=target,
                    modified_at=self._now(),
                    overrides=_merge(found.overrides, given),
                )
            )

    def pull(
        self,
        name: str | Path,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        as_name: str | None = None,
    ) -> Model:
        """Fetch a model by its name (a str), or take in a checkpoint on disk (a Path) in place.

        as_name: the name here; the default is the name that was pulled, or the file's. What
        on_progress raises cancels the pull; what was fetched by then is used by the next one.
        Raises PullError.
        """
        if isinstance(name, Path):
            target = ModelName.parse(as_name or name_of_path(name))
            on_progress(Progress(status="reading the checkpoint"))
            manifest = self._describe_in_place(target, name)
            with self._storage.lock():
                on_progress(Progress(status="writing manifest"))
                model = self._publish(manifest)
        else:
            wanted = ModelName.parse(name)
            target = ModelName.parse(as_name) if as_name else wanted
            model = self._pull(wanted, target, on_progress)
        on_progress(Progress(status="success"))
        return model

    def convert(self, name: str, write: Callable[[Path, Path], None], *, kind: str) -> Model:
        """Make a name stand for what `write(source, target)` makes of its checkpoint.

        The target is a directory that is not there yet. Everything else that is known of the model
        stays; its old files go if they are under the root and no other name uses them. kind: tells
        these bytes from others of the same source. Raises LibraryError if the name changes
        meanwhile, and what `write` raises; then everything is as before.
        """
        found = self._find(name)
        with self._storage.stage() as directory:
            write(found.model(self._storage.files).path, directory / kind)
            described = describe(directory / kind)
            identity = f"{found.identity}-{kind}"
            weights = tuple(
                (str(file.relative_to(directory)), file.stat().st_size) for file in described.files
            )
            manifest = replace(
                found,
                stored=identity,
                path=kind,
                weights=weights,
                identity=identity,
                modified_at=self._now(),
                details=replace(found.details, format=described.details.format),
            )
            with self._storage.lock():
                if self._manifests.read(found.name) != found:
                    raise LibraryError(f"{found.name} has changed meanwhile: try again")
                self._storage.publish(directory, identity)
                return self._publish(manifest)

    def is_known(self, name: str) -> bool:
        """Return whether `pull` knows where a name comes from. Asks no network."""
        return self._origins.knows(ModelName.parse(name))

    def _pull(
        self, wanted: ModelName, target: ModelName, on_progress: Callable[[Progress], None]
    ) -> Model:
        with (
            self._storage.stage() as directory,
            self._origins.fetched(wanted, directory, self.root, on_progress) as fetched,
        ):
            manifest = self._describe_staged(target, directory, fetched)
            on_progress(Progress(status="writing manifest"))
            with self._storage.lock():
                self._storage.publish(directory, fetched.identity)
                return self._publish(manifest)

    def _describe_staged(self, name: ModelName, directory: Path, fetched: Fetched) -> Manifest:
        described = describe(directory / fetched.path)
        return Manifest(
            name=name,
            stored=fetched.identity,
            path=fetched.path,
            weights=tuple(
                (str(path.relative_to(directory)), path.stat().st_size) for path in described.files
            ),
            identity=fetched.identity,
            source=fetched.source,
            modified_at=self._now(),
            details=described.details,
            info=described.info,
            published_template=described.template,
            published_license=described.license,
            overrides=Overrides(),
        )

    def _describe_in_place(self, name: ModelName, path: Path) -> Manifest:
        path = path.expanduser().absolute()
        if path.is_relative_to(self.root):
            raise InvalidRequestError(
                f"{path} is inside of the library at {self.root}: give the name of a model there"
            )
        described = describe(path)
        if self._check is not None:
            self._check(path, path.name)
        return Manifest(
            name=name,
            stored=None,
            path=str(path),
            weights=tuple((str(file), file.stat().st_size) for file in described.files),
            identity=fingerprint((*described.files, *small_files(path))),
            source=str(path),
            modified_at=self._now(),
            details=described.details,
            info=described.info,
            published_template=described.template,
            published_license=described.license,
            overrides=Overrides(),
        )

    def _find(self, text: str) -> Manifest:
        name = ModelName.parse(text)
        found = self._manifests.read(name)
        if found is not None:
            return found
        known = self._manifests.read_all(lambda error: None)
        short = [one for one in known if one.name.short.lower() == name.model.lower()]
        tagged = [one for one in short if one.name.tag.lower() == name.tag.lower()]
        if len(tagged) == 1:
            return tagged[0]
        near = [str(one.name) for one in tagged]
        near = near or nearest(name, [one.name for one in known])
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif self._origins.knows(name):
            hint = f"`gdsllm pull {text}` fetches it"
        else:
            hint = "`gdsllm list` names those that are, `gdsllm pull --help` what can be fetched"
        raise ModelNotFoundError(f"no model {text!r} on this machine: {hint}")

    def _publish(self, manifest: Manifest) -> Model:
        self._manifests.write(manifest)
        self._sweep()
        return manifest.model(self._storage.files)

    def _sweep(self) -> None:
        damaged: list[LibraryError] = []
        manifests = self._manifests.read_all(damaged.append)
        if not damaged:  # What a damaged one uses is not known, so everything stays.
            self._storage.sweep({one.stored for one in manifests if one.stored})


def name_of_path(path: Path) -> str:
    """Return the name that a checkpoint on disk gets unless told otherwise."""
    stem = path.name.removesuffix(".gguf").removesuffix(".safetensors")
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem)
    return kept.strip(".-") or "model"


def _merge(old: Overrides, new: Overrides) -> Overrides:
    return Overrides(
        template=old.template if new.template is None else new.template,
        system=old.system if new.system is None else new.system,
        parameters={**old.parameters, **new.parameters},
        license=old.license if new.license is None else new.license,
        messages=new.messages or old.messages,
    )
