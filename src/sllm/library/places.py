"""Where things are unless told otherwise, out of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sllm_store.user_cache import home_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT_VARIABLE = "GDSLLM_MODEL_ROOT"


def model_root(environment: Mapping[str, str]) -> Path:
    """Return the root of the library: GDSLLM_MODEL_ROOT, else where the desktop keeps data."""
    configured = environment.get(ROOT_VARIABLE)
    if configured:
        return Path(configured).expanduser().absolute()
    return _place(environment, "XDG_DATA_HOME", ".local/share") / "gdsllm" / "models"


def config_directory(environment: Mapping[str, str]) -> Path:
    """Return where a person's settings are."""
    return _place(environment, "XDG_CONFIG_HOME", ".config") / "gdsllm"


def state_directory(environment: Mapping[str, str]) -> Path:
    """Return where histories and the record of the running server are."""
    return _place(environment, "XDG_STATE_HOME", ".local/state") / "gdsllm"


def _place(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    configured = environment.get(variable)
    return Path(configured) if configured else home_directory(environment) / below_home
