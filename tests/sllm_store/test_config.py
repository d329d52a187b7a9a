"""Settings are checked once, where they are made; defaults come from the environment given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sllm_store.config import (
    ADDRESS_VARIABLE,
    READ_MODES,
    STORAGE_VARIABLE,
    TOKEN_VARIABLE,
    StoreConfig,
    default_address,
    default_socket_path,
    default_storage_path,
    is_loopback,
    rpc_target,
    size_setting,
)
from sllm_store.errors import InvalidRequestError


def config(**settings: Any) -> StoreConfig:
    paths = {"storage_path": Path("models"), "socket_path": Path("store.sock")}
    return StoreConfig(**(paths | settings))


def test_the_defaults_are_upstreams() -> None:
    assert (config().port, config().pool_bytes, config().chunk_bytes) == (8073, 4 << 30, 32 << 20)
    assert config().host is None
    assert not config().registration_required


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_bytes": 1 << 20}, "chunk size 1.0 MB: use a multiple of 2 MB"),
        ({"chunk_bytes": 3 << 20}, "chunk size 3.0 MB"),
        ({"chunk_bytes": 0}, "chunk size 0 B"),
        ({"pool_bytes": 63 << 20}, "pool size 63.0 MB: it must hold at least two chunks of 32.0"),
        ({"threads": 0}, "0 threads: use 1 to 64"),
        ({"threads": 65}, "65 threads"),
        ({"read_mode": "fast"}, "read mode 'fast': use one of"),
        ({"read_mode": "cufile"}, "a store keeps what it reads in host memory"),
        ({"load_timeout_s": 0}, "load timeout 0 s"),
        ({"load_timeout_s": float("nan")}, "load timeout nan s"),
        ({"load_timeout_s": float("inf")}, "load timeout inf s"),
        ({"unload_timeout_s": 0}, "unload timeout 0 s"),
        ({"token": "pässword"}, "the token (SLLM_STORE_TOKEN): use printable ASCII"),
        ({"token": " secret"}, "use printable ASCII without spaces at its ends"),
        ({"token": "two\nlines"}, "use printable ASCII"),
        ({"socket_path": Path("/")}, "socket /: name a file for it"),
        ({"socket_path": Path("/run", "x" * 98)}, "the system allows paths of 101 bytes"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        config(**settings)


@pytest.mark.parametrize("mode", READ_MODES)
def test_every_read_mode_is_accepted(mode: str) -> None:
    assert config(read_mode=mode).read_mode == mode


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("store.example", False),
    ],
)
def test_a_host_that_others_reach_needs_a_token(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert config(host=host, token="secret").host == host
    if loopback:
        assert config(host=host).token is None
        return
    for token in (None, ""):
        with pytest.raises(InvalidRequestError, match=f"host {host}.*{TOKEN_VARIABLE}"):
            config(host=host, token=token)


@pytest.mark.parametrize(
    ("pool_bytes", "chunks"), [(64 << 20, 2), ((64 << 20) + 1, 3), (1 << 30, 32)]
)
def test_the_pool_is_rounded_up_to_chunks(pool_bytes: int, chunks: int) -> None:
    assert config(pool_bytes=pool_bytes).chunks_total == chunks


def test_each_user_has_one_socket() -> None:
    assert default_socket_path({}, uid=7) == Path("/tmp/sllm-store-7/store.sock")
    runtime = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert default_socket_path(runtime, uid=7) == Path("/run/user/7/sllm-store-7/store.sock")
    assert default_address(runtime, uid=7) == "unix:/run/user/7/sllm-store-7/store.sock"


def test_the_environment_names_another_address_and_storage_path() -> None:
    assert default_address({ADDRESS_VARIABLE: "localhost:1"}, uid=7) == "localhost:1"
    assert default_address({ADDRESS_VARIABLE: ""}, uid=7).startswith("unix:")
    assert default_storage_path({STORAGE_VARIABLE: "/data"}) == Path("/data")
    assert default_storage_path({}) == Path.home() / "models"


def test_a_size_setting_is_named_when_it_is_wrong() -> None:
    assert size_setting("--chunk-size", "2MB") == 2 << 20
    with pytest.raises(InvalidRequestError, match=r"--chunk-size: 'two' is not a size"):
        size_setting("--chunk-size", "two")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:8073", "127.0.0.1:8073"),
        ("unix:/run/store.sock", "unix:/run/store.sock"),
        ("unix:/a%20b/c d?#", "unix:/a%2520b/c%20d%3F%23"),
    ],
)
def test_a_path_is_quoted_for_what_reads_it_as_part_of_a_uri(address: str, target: str) -> None:
    assert rpc_target(address) == target
