"""The environment that commands see: this process's, then `.env` upward from here, then config."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sllm.core.errors import SettingsError
from sllm.library.places import config_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

VARIABLES = (
    "GDSLLM_MODEL_ROOT",
    "GDSLLM_HF_CACHE",
    "GDSLLM_API_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "LLM_SERVER_URL",
    "OLLAMA_HOST",
    "OLLAMA_KEEP_ALIVE",
    "OLLAMA_CONTEXT_LENGTH",
    "OLLAMA_NUM_PARALLEL",
    "OLLAMA_MAX_QUEUE",
    "OLLAMA_MAX_LOADED_MODELS",
    "OLLAMA_ORIGINS",
)
FILE = ".env"


def read_files(environment: MutableMapping[str, str], directory: Path) -> None:
    """Add what files say of the documented variables, where the environment does not say it.

    The nearest `.env` from a directory upward is read, then the one beside a person's settings.
    Other variables in them are nobody's business here. Raises SettingsError, or OSError, for a file
    that cannot be read.
    """
    from dotenv import dotenv_values

    upward = (parent / FILE for parent in (directory, *directory.parents))
    nearest = next((path for path in upward if path.is_file()), None)
    for path in (nearest, config_directory(environment) / FILE):
        if path is None or not path.is_file():
            continue
        try:
            with _naming(path):
                found = dotenv_values(path)
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"{path} is not text in UTF-8: write NAME=value lines there, or remove it"
            ) from error
        for name, value in found.items():
            if name in VARIABLES and value is not None:
                environment.setdefault(name, value)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have what is said of lines that are left out name their file."""

    def name_file(record: logging.LogRecord) -> bool:
        record.msg = f"{path}: {record.msg}"
        return True

    logger = logging.getLogger("dotenv.main")
    logger.addFilter(name_file)
    try:
        yield
    finally:
        logger.removeFilter(name_file)


def read_own_files() -> None:
    """Add to this process's environment, so that all of it sees the same."""
    read_files(os.environ, Path.cwd())
