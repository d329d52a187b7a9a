"""`sllm-store start`: settings, readiness, the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sllm_store.cli.start import start as start_command
from sllm_store.client import SllmStoreClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.config import StoreConfig

START_THEN_TELL = """
import json, sys
from sllm_store.cli.root import cli
cli.main(["start", *sys.argv[1:]], "sllm-store", standalone_mode=False)
print(json.dumps([name for name in ("torch", "transformers", "numpy") if name in sys.modules]))
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[StoreConfig]:
    """Collect configurations instead of serving."""
    configs: list[StoreConfig] = []
    monkeypatch.setattr(
        "sllm_store.server.serve.serve", lambda config, on_ready: configs.append(config)
    )
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    return configs


def test_settings_have_upstreams_defaults_where_those_are_safe(
    run: Callable[..., Any], served: list[StoreConfig], environment: dict[str, str]
) -> None:
    assert run("start").code == 0
    (config,) = served
    assert config.pool_bytes == 4 << 30
    assert config.chunk_bytes == 32 << 20
    assert config.host is None
    assert config.disk_bytes is None
    assert not config.registration_required
    assert str(config.socket_path).startswith(environment["XDG_RUNTIME_DIR"])


def test_a_store_says_why_it_does_not_read_by_cufile(run: Callable[..., Any]) -> None:
    done = run("start", "--read-mode", "cufile")
    assert done.code == 2
    assert "a store keeps what it reads in host memory" in done.err


def test_every_flag_reaches_the_configuration(
    run: Callable[..., Any], served: list[StoreConfig], storage: Path
) -> None:
    flags = f"""--storage-path {storage} --mem-pool-size 1gb --num-threads 3 --chunk-size 4MB
        --disk-size 10GB --registration-required true --host localhost --port 0
        --socket {storage}/s --token secret --read-mode direct --reflection --metrics-port 0
        --load-timeout 5 --unload-timeout 2 --log-format text"""
    done = run("start", *flags.split())
    assert (done.code, done.err) == (0, "")
    (config,) = served
    assert config.storage_path == storage
    assert (config.pool_bytes, config.chunk_bytes, config.disk_bytes) == (
        1 << 30,
        4 << 20,
        10 << 30,
    )
    assert (config.threads, config.read_mode) == (3, "direct")
    assert (config.load_timeout_s, config.unload_timeout_s) == (5.0, 2.0)
    assert (config.host, config.port, config.token) == ("localhost", 0, "secret")
    assert (config.socket_path, config.metrics_port) == (storage / "s", 0)
    assert config.registration_required
    assert config.reflection


@pytest.mark.parametrize(
    ("args", "required"),
    [
        ([], False),
        (["--registration-required"], True),
        (["--registration-required", "true"], True),
        (["--registration-required", "True"], True),
        (["--registration-required", "false"], False),
        (["--registration-required", "--reflection"], True),
    ],
)
def test_registration_required_is_a_flag_with_or_without_a_value(
    run: Callable[..., Any],
    served: list[StoreConfig],
    args: list[str],
    required: bool,  # noqa: FBT001
) -> None:
    assert run("start", *args).code == 0
    assert served[0].registration_required is required


@pytest.mark.parametrize("flag", ["--num-thread", "--num-threads"])
def test_threads_have_both_of_upstreams_spellings(
    run: Callable[..., Any], served: list[StoreConfig], flag: str
) -> None:
    assert run("start", flag, "2").code == 0
    assert served[0].threads == 2


def test_a_port_without_a_host_is_open_to_this_machine_only(
    run: Callable[..., Any], served: list[StoreConfig]
) -> None:
    assert run("start", "--port", "8073").code == 0
    assert (served[0].host, served[0].port) == ("127.0.0.1", 8073)


def test_the_environment_names_storage_socket_and_token(
    run_apart: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    code = "import sllm_store.server.serve as s; s.serve = lambda c, on_ready: print(c);" + (
        "from sllm_store.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "start"],
        env=environment
        | {
            "STORAGE_PATH": str(tmp_path / "there"),
            "SLLM_STORE_ADDRESS": f"unix:{tmp_path}/own.sock",
            "SLLM_STORE_TOKEN": "secret",
            "SLLM_STORE_DISK_SIZE": "7GB",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"PosixPath('{tmp_path}/there')" in done.stdout
    assert f"PosixPath('{tmp_path}/own.sock')" in done.stdout
    assert "token='secret'" in done.stdout
    assert f"disk_bytes={7 << 30}" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--mem-pool-size", "lots"], "'lots' is not a size"),
        (["--mem-pool-size", "32MB"], "it must hold at least two chunks"),
        (["--chunk-size", "3MB"], "use a multiple of 2 MB"),
        (["--num-threads", "0"], "use 1 to 64"),
        (["--read-mode", "mmap"], "'mmap' is not one of"),
        (["--host", "0.0.0.0"], "set SLLM_STORE_TOKEN"),
        (["--port", "70000"], "not in the range"),
        (["--load-timeout", "0"], "it must be positive"),
        (["--load-timeout", "nan"], "it must be positive"),
        (["--socket", "/"], "name a file for it"),
        (["--socket", "/" + "x" * 101], "the system allows paths of 101 bytes"),
        (["--best-guess"], "No such option"),
    ],
)
def test_settings_that_cannot_work_are_wrong_usage(
    run: Callable[..., Any], served: list[StoreConfig], args: list[str], says: str
) -> None:
    done = run("start", *args)
    assert done.code == 2
    assert says in done.err
    assert not served


def test_it_makes_the_storage_path_and_says_so(
    run: Callable[..., Any], served: list[StoreConfig], tmp_path: Path
) -> None:
    path = tmp_path / "a" / "b"
    assert run("start", "--storage-path", path).out == f"made the storage path {path}\n"
    assert path.is_dir()
    assert run("start", "--storage-path", path).out == ""
    assert len(served) == 2


def test_a_file_is_no_storage_path(run_apart: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_apart("start", "--storage-path", tmp_path / "file")
    assert done.code == 1
    assert done.err.startswith(f"error: storage path {tmp_path}/file is not a directory")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_leaves_no_socket(
    start: Callable[..., subprocess.Popen[str]],
    environment: dict[str, str],
    storage: Path,
    number: int,
) -> None:
    process = start("--storage-path", storage)
    runtime = Path(environment["XDG_RUNTIME_DIR"])
    assert len([path for path in runtime.rglob("*") if path.is_socket()]) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert [path for path in runtime.rglob("*") if path.is_socket()] == []


def test_its_log_is_one_json_object_a_line(
    start: Callable[..., subprocess.Popen[str]], storage: Path
) -> None:
    process = start("--storage-path", storage)
    process.terminate()
    _, err = process.communicate(timeout=30)
    records = [json.loads(line) for line in err.splitlines()]
    assert [record["message"] for record in records] == [
        "store ready",
        "store stopping",
        "store stopped",
    ]
    assert records[0]["pool_bytes"] == 32 << 20


def test_its_log_is_text_when_asked(
    start: Callable[..., subprocess.Popen[str]], storage: Path
) -> None:
    process = start("--storage-path", storage, "--log-format", "text")
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert " INFO store ready\n" in err


def test_a_second_store_on_the_socket_says_that_one_runs(
    start: Callable[..., subprocess.Popen[str]], run_apart: Callable[..., Any], storage: Path
) -> None:
    first = start("--storage-path", storage)
    done = run_apart("start", "--storage-path", storage)
    assert done.code == 1
    assert "a store is already running at unix:" in done.err
    assert "stop it, or name another --socket" in done.err
    assert first.poll() is None


def test_it_tells_how_to_reach_each_address(
    spawn: Callable[..., subprocess.Popen[str]], storage: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.sock"
    process = spawn(
        *f"start --mem-pool-size 32MB --chunk-size 2MB --socket {path} --port 0".split(),
        *("--storage-path", storage),
        env={"SLLM_STORE_TOKEN": "secret"},
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    needs = "SLLM_STORE_TOKEN must hold its token"
    assert lines[0] == (f"ready at unix:{path} (export SLLM_STORE_ADDRESS=unix:{path}; {needs})\n")
    address = lines[1].split()[2]
    assert lines[1] == f"ready at {address} (export SLLM_STORE_ADDRESS={address}; {needs})\n"
    with SllmStoreClient(address, token="secret") as client:
        assert client.status().pid == process.pid


def test_it_warns_when_the_checkpoints_exceed_the_quota(
    start: Callable[..., subprocess.Popen[str]],
    write_safetensors: Callable[..., object],
    storage: Path,
) -> None:
    write_safetensors(storage / "m")
    process = start("--storage-path", storage, "--disk-size", "4KB")
    process.terminate()
    _, err = process.communicate(timeout=30)
    warning = json.loads(err.splitlines()[0])
    assert warning["level"] == "warning"
    assert "more than --disk-size 4.0 KB" in warning["message"]
    assert warning["used_bytes"] > warning["disk_bytes"] == 4096


def test_the_server_imports_no_framework(environment: dict[str, str], storage: Path) -> None:
    args = ["--mem-pool-size", "32MB", "--chunk-size", "2MB", "--storage-path", str(storage)]
    with subprocess.Popen(
        [sys.executable, "-c", START_THEN_TELL, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready at ")
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        process.terminate()
        assert json.loads(process.stdout.read()) == []
    assert "libtorch" not in maps


def test_it_is_ready_after_less_than_a_second_of_work(
    start: Callable[..., subprocess.Popen[str]], storage: Path
) -> None:
    """The processor's time is measured, which other processes do not lengthen.

    Without a GPU, because the driver's own start and pinning the pool come on top.
    """
    process = start("--storage-path", storage, env={"SLLM_CUDA_LIBRARY": "/none/libcuda.so"})
    fields: list[Any] = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    assert ticks / os.sysconf("SC_CLK_TCK") < 1.0


def test_the_help_names_every_flag_of_upstream() -> None:
    names = {name for parameter in start_command.params for name in parameter.opts}
    flags = """--storage-path --mem-pool-size --num-thread --num-threads --chunk-size --disk-size
        --registration-required --host --port"""
    assert names >= set(flags.split())


def test_a_storage_path_that_cannot_be_made_is_said_with_what_to_do(
    run: Callable[..., Any], served: list[StoreConfig], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = run("start", "--storage-path", tmp_path / "file" / "models")
    assert done.code == 1
    assert "cannot make the storage path" in done.err
    assert "Not a directory; name another with --storage-path" in done.err
    assert not served


def test_a_relative_socket_is_told_so_that_it_works_from_anywhere(
    run: Callable[..., Any], served: list[StoreConfig], storage: Path
) -> None:
    assert run("start", "--storage-path", storage, "--socket", "here.sock").code == 0
    assert served[0].socket_path == Path.cwd() / "here.sock"


def test_a_socket_may_have_any_name(
    spawn: Callable[..., subprocess.Popen[str]], storage: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a b%20ü?.sock"
    process = spawn(
        *("start", "--mem-pool-size", "32MB", "--chunk-size", "2MB"),
        *("--socket", path, "--storage-path", storage),
    )
    assert process.stdout is not None
    assert f"export SLLM_STORE_ADDRESS='unix:{path}'" in process.stdout.readline()
    with SllmStoreClient(f"unix:{path}") as client:
        assert client.status().pid == process.pid
        assert client.list_models() == []


def test_a_pool_larger_than_the_machine_is_refused(
    run_apart: Callable[..., Any], storage: Path
) -> None:
    done = run_apart("start", "--storage-path", storage, "--mem-pool-size", "64EB")
    assert done.code == 1
    assert "pool size 64.0 EB: this machine has " in done.err
    assert "Traceback" not in done.err


def test_a_taken_metrics_port_is_said_with_what_to_do(
    run_apart: Callable[..., Any], storage: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_apart("start", "--storage-path", storage, "--metrics-port", port)
    assert done.code == 1
    assert done.err == (
        f"error: cannot serve metrics on 127.0.0.1:{port}: Address already in use; name another "
        "--metrics-port\n"
    )
