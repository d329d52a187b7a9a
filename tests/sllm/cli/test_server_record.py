"""A server is found by its record, and nobody else is ever stopped for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sllm.cli import server_record
from sllm.cli.server_record import find_servers, recorded, stop_server
from sllm.core.errors import ServerError

SLEEPER = "import signal, sys, time; {}; print(flush=True); time.sleep(600)"


def start(before: str = "pass") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(before)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_server_is_recorded_while_it_runs(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    with recorded(environment, "http://there", Path("/models")):
        (found,) = find_servers(environment)
        assert (found.pid, found.url, found.root) == (os.getpid(), "http://there", "/models")
    assert find_servers(environment) == []


def test_a_server_whose_record_cannot_be_kept_runs_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    environment = {"XDG_STATE_HOME": str(tmp_path / "file")}
    with recorded(environment, "http://there", Path("/models")):
        assert find_servers(environment) == []
    assert "servers cannot be written (Not a directory)" in capsys.readouterr().err


def test_records_of_the_dead_and_of_others_are_not_servers(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    directory = tmp_path / "gdsllm" / "servers"
    directory.mkdir(parents=True)
    record = {"pid": os.getpid(), "started": 1, "url": "http://there", "root": "/"}
    (directory / "1.json").write_text(json.dumps(record))
    (directory / "2.json").write_text("{")
    assert find_servers(environment) == []
    assert [path.name for path in directory.iterdir()] == ["2.json"]


def test_a_server_is_stopped_and_a_stranger_with_its_number_is_not(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    with start() as process, recorded(environment, "http://there", tmp_path):
        (mine,) = find_servers(environment)
        stranger = replace(mine, pid=process.pid)
        stop_server(stranger)
        assert process.poll() is None
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        stop_server(replace(stranger, started=int(fields[19])))
        assert process.wait(30) == -15
    stop_server(replace(stranger, pid=2**22 - 1))


def test_a_server_that_does_not_go_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_record, "STOP_TIMEOUT_S", 0.05)
    with start("signal.signal(signal.SIGTERM, signal.SIG_IGN)") as process:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        record = server_record.ServerRecord(
            pid=process.pid, started=int(fields[19]), url="http://there", root="/"
        )
        try:
            with pytest.raises(ServerError, match="is still there"):
                stop_server(record)
        finally:
            process.kill()
