"""Models come from a hub over HTTP, in the parts that are needed, and again where a try ended."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import huggingface_hub.constants
import pytest

from sllm.core.errors import PullError, UnsupportedModelError
from sllm.library.hub import Hub
from sllm.library.models import Library
from sllm.library.origins import Origins
from sllm_store.groups.description import describe_checkpoint
from tests.sllm.library.checkpoints import make_directory, make_gguf
from tests.sllm.library.fake_hub import COMMIT, TOKEN, serve_hub, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sllm.library.model import Progress
    from tests.sllm.library.fake_hub import FakeHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model in safetensors, `org/dense`, and one in GGUF, `org/blocks`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    dense = make_directory(tmp_path / "dense")
    blocks = make_gguf(tmp_path / "blocks.gguf").read_bytes()
    with serve_hub() as served:
        served.repositories["org/dense"] = {
            **{path.name: path.read_bytes() for path in dense.iterdir()},
            "pytorch_model.bin": b"not needed",
            "original/consolidated.safetensors": b"not needed",
        }
        served.repositories["org/blocks"] = {
            "README.md": b"not needed",
            "blocks-Q4_K_M.gguf": blocks,
            "blocks-Q8_0.gguf": blocks + bytes(32),
            "mmproj-F16.gguf": b"not needed",
        }
        yield served


@pytest.fixture
def library(tmp_path: Path, hub: FakeHub) -> Library:
    """A library that knows the hub."""
    return Library(tmp_path / "library", origins=Origins(hub=Hub(endpoint=hub.url)))


def test_safetensors_come_with_what_belongs_to_them(library: Library, hub: FakeHub) -> None:
    steps: list[Progress] = []
    model = library.pull("hf.co/org/dense", steps.append)
    assert model.name == "org/dense:latest"
    assert model.source == f"hf.co/org/dense@{COMMIT}"
    assert sorted(path.name for path in model.path.iterdir()) == [
        "LICENSE",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]
    assert model.details.parameter_size == 40
    assert library.get("dense") == model
    assert list((library.root / "downloads").glob("*")) == [
        library.root / "downloads" / "org+dense@latest.lock"
    ]
    ends = {step.status: (step.completed, step.total) for step in steps if step.total}
    size = len(hub.repositories["org/dense"]["config.json"])
    assert ends["pulling config.json"] == (size, size)


@pytest.mark.parametrize(("tag", "file"), [("", "Q4_K_M"), (":q8_0", "Q8_0")])
def test_a_quantisation_is_chosen_by_its_tag(
    tag: str, file: str, library: Library, hub: FakeHub
) -> None:
    steps: list[Progress] = []
    model = library.pull(f"org/blocks{tag}", steps.append)
    assert model.path.name == f"blocks-{file}.gguf"
    assert {name for name, _ in hub.gets} == {f"blocks-{file}.gguf"}
    digest = f"sha256:{sha256(hub.repositories['org/blocks'][model.path.name])}"
    assert {step.digest for step in steps if step.total} == {digest}


def test_a_quantisation_that_is_not_there_names_those_that_are(library: Library) -> None:
    with pytest.raises(PullError, match=r"no GGUF of Q2_K.* with one of Q4_K_M, Q8_0"):
        library.pull("org/blocks:q2_k")


def test_files_that_have_arrived_are_not_fetched_again(library: Library, hub: FakeHub) -> None:
    def cancel(progress: Progress) -> None:
        if "model.safetensors" in progress.status and progress.completed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.pull("org/dense", cancel)
    assert library.list() == []
    library.pull("org/dense")
    names = [name for name, _ in hub.gets]
    assert names.count("config.json") == 1
    assert names.count("model.safetensors") == 2


def test_a_connection_that_breaks_is_taken_up(
    library: Library, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 256)
    hub.cut_after["blocks-Q4_K_M.gguf"] = 700
    assert library.pull("org/blocks").problem is None
    (_, first), (_, second) = hub.gets
    assert first == 0
    assert second > 0


def test_other_bytes_than_the_hub_promised_are_refused(library: Library, hub: FakeHub) -> None:
    hub.lies.add("blocks-Q4_K_M.gguf")
    with pytest.raises(PullError, match="other bytes"):
        library.pull("org/blocks")
    hub.lies.clear()
    assert library.pull("org/blocks").problem is None


def test_a_cache_of_ones_own_is_kept_and_used_again(tmp_path: Path, hub: FakeHub) -> None:
    origins = Origins(hub=Hub(endpoint=hub.url, cache=tmp_path / "cache"))
    library = Library(tmp_path / "library", origins=origins)
    library.pull("org/blocks")
    library.remove("org/blocks")
    assert list((tmp_path / "cache").rglob("blocks-Q4_K_M.gguf"))
    library.pull("org/blocks")
    assert len(hub.gets) == 1


def test_a_model_that_is_refused_by_its_config_is_not_fetched(tmp_path: Path, hub: FakeHub) -> None:
    def refuse(config: Path, name: str) -> None:
        assert config.name == "config.json"
        raise UnsupportedModelError(f"{name} is not computed")

    library = Library(
        tmp_path / "library", origins=Origins(hub=Hub(endpoint=hub.url, check=refuse))
    )
    with pytest.raises(UnsupportedModelError, match="org/dense is not computed"):
        library.pull("org/dense")
    assert not [name for name, _ in hub.gets if name.endswith(".safetensors")]
    assert library.list() == []


def test_a_gguf_that_is_refused_by_its_header_is_not_fetched(tmp_path: Path, hub: FakeHub) -> None:
    def refuse(path: Path, name: str) -> None:
        found = describe_checkpoint(path)
        assert found.metadata["general.architecture"] == "llama"
        raise UnsupportedModelError(f"{path}: {name} is not computed")

    library = Library(
        tmp_path / "library", origins=Origins(hub=Hub(endpoint=hub.url, check=refuse))
    )
    refused = r"^org/blocks was not fetched: blocks-Q4_K_M.gguf: org/blocks is not computed$"
    with pytest.raises(PullError, match=refused):
        library.pull("org/blocks")
    assert hub.gets == [("blocks-Q4_K_M.gguf", 0)]  # It is smaller than what is read of it.
    assert library.list() == []
    hub.without_ranges = True
    with pytest.raises(PullError, match=refused):
        library.pull("org/blocks")


def test_a_model_larger_than_the_disk_is_refused_before_it_is_fetched(
    library: Library, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(PullError, match=r"org/blocks.* needs .* more, and .* room for 10 B"):
        library.pull("org/blocks")
    assert not [name for name, _ in hub.gets if name.endswith(".gguf")]
    assert library.list() == []
    cached = Origins(hub=Hub(endpoint=hub.url, cache=tmp_path / "cache"))
    with pytest.raises(PullError, match="choose another disk with GDSLLM_HF_CACHE"):
        Library(tmp_path / "other", origins=cached).pull("org/blocks")


def test_a_gated_model_needs_a_token(tmp_path: Path, library: Library, hub: FakeHub) -> None:
    hub.gated.add("org/dense")
    with pytest.raises(PullError, match=r"terms to be accepted.*HUGGINGFACE_HUB_TOKEN"):
        library.pull("org/dense")
    origins = Origins(hub=Hub(endpoint=hub.url, token=TOKEN))
    assert Library(tmp_path / "other", origins=origins).pull("org/dense").problem is None


def test_what_the_hub_has_not_is_told(library: Library, hub: FakeHub) -> None:
    with pytest.raises(PullError, match="no model org/nothing"):
        library.pull("org/nothing")
    hub.repositories["org/text"] = {"README.md": b""}
    with pytest.raises(PullError, match="neither safetensors nor GGUF"):
        library.pull("org/text")


def test_a_hub_that_cannot_be_reached_is_told(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins = Origins(hub=Hub(endpoint="http://127.0.0.1:9"))
    away = Library(tmp_path / "other", origins=origins)
    with pytest.raises(PullError, match="cannot be reached"):
        away.pull("org/dense")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PullError, match=r"cannot be reached.*HF_HUB_OFFLINE"):
        library.pull("org/dense")


def test_the_environment_configures_the_hub(tmp_path: Path) -> None:
    found = Origins.from_environment(
        {
            "HUGGINGFACE_HUB_TOKEN": TOKEN,
            "GDSLLM_HF_CACHE": str(tmp_path),
            "HF_ENDPOINT": "http://there",
        }
    )
    assert found.hub == Hub(token=TOKEN, cache=tmp_path, endpoint="http://there")
    assert replace(found, hub=Hub()) == Origins.from_environment({})
    assert Origins.from_environment({"HF_TOKEN": TOKEN}).hub.token == TOKEN
