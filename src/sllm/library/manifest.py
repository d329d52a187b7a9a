"""Manifest: what a name stands for, as a JSON file that is replaced in one step.

    root/manifests/<key>.json

It holds what `list` and `show` need, so that neither opens a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm.core.errors import LibraryError
from sllm.library.model import Details, Model, Overrides
from sllm.library.names import ModelName
from sllm.library.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION = 1
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One name's record.

    stored: the directory under files/ that `path` and `weights` are relative to; None if they are
    absolute, of a checkpoint that is used where it is. weights: files and their sizes.
    """

    name: ModelName
    stored: str | None
    path: str
    weights: tuple[tuple[str, int], ...]
    identity: str
    source: str
    modified_at: datetime
    details: Details
    info: Mapping[str, Any]
    published_template: str | None
    published_license: str | None
    overrides: Overrides

    @property
    def digest(self) -> str:
        """Return what differs as soon as the weights or an override do."""
        values = {"identity": self.identity, "overrides": asdict(self.overrides)}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def model(self, files: Path) -> Model:
        """Return the model, whose stored bytes are under `files`, as it is on disk now."""
        top = files / self.stored if self.stored else Path("/")
        own = self.overrides
        return Model(
            name=str(self.name),
            path=top / self.path,
            digest=self.digest,
            size_bytes=sum(size for _, size in self.weights),
            modified_at=self.modified_at,
            details=self.details,
            template=own.template,
            system=own.system,
            parameters=own.parameters,
            license=own.license or self.published_license,
            messages=own.messages,
            info=self.info,
            published_template=self.published_template,
            source=self.source,
            problem=self._find_problem(top),
        )

    def to_json(self) -> bytes:
        """Return the file's contents."""
        values = {
            "version": VERSION,
            **asdict(self),
            "name": str(self.name),
            "modified_at": self.modified_at.isoformat(),
        }
        return json.dumps(values, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes, where: Path) -> Manifest:
        """Parse a file's contents; raise LibraryError naming the file if that cannot be."""
        try:
            values = json.loads(data)
            version = values.pop("version")
            if version != VERSION:
                raise LibraryError(
                    f"{where} has version {version}, and this program knows {VERSION}: update it"
                )
            details = values.pop("details")
            own = values.pop("overrides")
            return cls(
                name=ModelName.parse(values.pop("name")),
                modified_at=datetime.fromisoformat(values.pop("modified_at")),
                weights=tuple((name, size) for name, size in values.pop("weights")),
                details=Details(**{**details, "families": tuple(details["families"])}),
                overrides=Overrides(
                    **{**own, "messages": tuple((role, text) for role, text in own["messages"])}
                ),
                **values,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LibraryError(
                f"{where} is damaged ({error}): remove it, and pull or create the model again"
            ) from error

    def _find_problem(self, top: Path) -> str | None:
        for name, size_bytes in self.weights:
            path = top / name
            try:
                found = path.stat().st_size
            except OSError as error:
                return f"{path} is gone ({error.strerror}): put it back, or pull the model again"
            if found != size_bytes:
                return (
                    f"{path} had {size_bytes} bytes and has {found} now: pull or create the model "
                    "again"
                )
        return None


class Manifests:
    """The manifests under a root. Reading needs no lock; hold the storage's to change any."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, name: ModelName) -> Manifest | None:
        """Return the manifest of a name in any case, None if there is none."""
        return _read(self._path(name))

    def read_all(self, on_damaged: Callable[[LibraryError], None]) -> list[Manifest]:
        """Return every manifest that can be read, in the order of names; the others are told."""
        manifests = []
        for path in self._paths():
            try:
                manifest = _read(path)
            except LibraryError as error:
                on_damaged(error)
            else:
                manifests += [] if manifest is None else [manifest]
        return sorted(manifests, key=lambda manifest: manifest.name.key)

    def write(self, manifest: Manifest) -> None:
        """Add a manifest, or replace the one of the same name."""
        write_file(self._path(manifest.name), manifest.to_json())

    def remove(self, name: ModelName) -> None:
        """Remove a manifest, also one that cannot be read."""
        self._path(name).unlink()

    def has(self, name: ModelName) -> bool:
        """Return whether there is one, readable or not."""
        return self._path(name).is_file()

    def _path(self, name: ModelName) -> Path:
        return self._directory / f"{name.key}{_SUFFIX}"

    def _paths(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return [
            path
            for path in self._directory.iterdir()
            if path.suffix == _SUFFIX and not path.name.startswith(".")
        ]


def _read(path: Path) -> Manifest | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None  # Perhaps removed since the directory was read.
    except OSError as error:
        raise LibraryError(f"cannot read {path}: {error.strerror}") from error
    return Manifest.from_json(data, path)
