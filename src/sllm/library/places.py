"""Where things are unless told otherwise, out of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT_VARIABLE = "GDSLLM_MODEL_ROOT"


def model_root(environment: Mapping[str, str]) -> Path:
    """Return the root of the library: GDSLLM_MODEL_ROOT, else where the desktop keeps data."""
    configured = environment.get(ROOT_VARIABLE)
    if configured:
        return Path(configured).expanduser().absolute()
    data = environment.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "gdsllm" / "models"


def config_directory(environment: Mapping[str, str]) -> Path:
    """Return where a person's settings are."""
    configured = environment.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "gdsllm"


def state_directory(environment: Mapping[str, str]) -> Path:
    """Return where histories and the record of the running server are."""
    configured = environment.get("XDG_STATE_HOME")
    return (Path(configured) if configured else Path.home() / ".local" / "state") / "gdsllm"
