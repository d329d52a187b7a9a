"""What every test starts from: nothing of this user's, and no network."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sllm.library.smollm2 import SMOLLM2, default_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

# Before any library that reads them at import is imported. Tests load no model by its hub name;
# one that tries fails at once instead of waiting for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # Kernels run on the CPU, slowly.
for _name in ("STORAGE_PATH", "SLLM_STORE_ADDRESS", "SLLM_STORE_TOKEN"):
    os.environ.pop(_name, None)

_SMOLLM2 = default_cache() / SMOLLM2.file_name  # Before the cache is another one.

# What is learnt about the disk here must not decide how later runs behave, nor be left behind.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sllm-test-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


# A shell has what it runs in the background ignore Ctrl-C, and so would every process started here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model, if `examples/fetch_smollm2.py` has fetched it."""
    if not _SMOLLM2.is_file():
        pytest.skip(f"no {_SMOLLM2}: run python examples/fetch_smollm2.py")
    return _SMOLLM2


def pytest_collection_finish() -> None:
    """Collections during tests look at what tests made, not at all that was imported for them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter end as it does otherwise: native modules complain of what it leaves."""
    gc.unfreeze()


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Collections look at what a module's own tests made, not at all that the process holds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()
