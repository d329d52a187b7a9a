"""Values of options: sizes, paths, backends, names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from sllm_store.cli.options import Backend, FanIn, Size, UserPath

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.store_process import StoreProcess


def parse(kind: Any, text: str) -> Any:
    """Return what a command gets for --value text, or the usage error."""
    values: list[Any] = []

    @click.command()
    @click.option("--value", type=kind)
    def go(*, value: Any) -> None:
        values.append(value)

    done = CliRunner().invoke(go, ["--value", text])
    assert done.exit_code == (0 if values else 2)
    return values[0] if values else done.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 << 30), ("32mb", 32 << 20), ("1.5 GiB", 3 << 29), ("2g", 2 << 30), ("512", 512)],
)
def test_a_size_is_read_in_any_case(text: str, size: int) -> None:
    assert parse(Size(), text) == size


def test_a_wrong_size_says_what_one_looks_like() -> None:
    assert "write a number and a unit, as in 32MB or 4GB" in parse(Size(), "much")


def test_a_tilde_is_the_home_directory() -> None:
    assert parse(UserPath(), "~/models") == Path.home() / "models"


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_backend_that_is_planned_is_told_from_a_wrong_one(name: str) -> None:
    assert f"'{name}' is planned, and no part of this release" in parse(Backend(), name)


def test_an_unknown_backend_is_wrong_usage(run: Callable[..., Any]) -> None:
    done = run("save", "--model", "m", "--backend", "tensorrt")
    assert done.code == 2
    assert "'tensorrt' is not a backend; use 'transformers'" in done.err


def test_help_offers_only_the_backend_that_is_here(run: Callable[..., Any]) -> None:
    for command in ("save", "load"):
        assert "vllm" not in run(command, "--help").out


def test_names_of_checkpoints_are_completed(
    run_apart: Callable[..., Any],
    write_safetensors: Callable[..., object],
    storage: Path,
) -> None:
    write_safetensors(storage / "org" / "model")
    write_safetensors(storage / "other")
    done = run_apart(
        env={
            "_SLLM_STORE_COMPLETE": "bash_complete",
            "COMP_WORDS": "sllm-store show or",
            "COMP_CWORD": "2",
            "STORAGE_PATH": str(storage),
        }
    )
    assert done.out.split() == ["plain,org/model"]


def test_names_of_the_running_stores_checkpoints_are_completed(
    run_apart: Callable[..., Any],
    write_safetensors: Callable[..., object],
    storage: Path,
    start_store: Callable[..., StoreProcess],
) -> None:
    write_safetensors(storage / "mine")
    completed = {"_SLLM_STORE_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    completed["COMP_WORDS"] = "sllm-store pin "
    nobody = {"SLLM_STORE_ADDRESS": f"unix:{storage}/nobody.sock"}
    assert run_apart(env=completed | nobody).out.split() == []
    running = {"SLLM_STORE_ADDRESS": start_store(storage).address}
    assert run_apart(env=completed | running).out.split() == ["plain,mine"]


def test_fan_in_is_all_gpus_or_some() -> None:
    assert parse(FanIn(), "all") is None
    assert parse(FanIn(), "0,2") == (0, 2)
    assert "name GPUs by number, as in '0,2'" in parse(FanIn(), "two")
