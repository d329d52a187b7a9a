"""load_dict: a checkpoint as a state dict, from a running store or by this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm_store.interpreter import short_turns
from sllm_store.torch.devices import DeviceMap, parse_device_map, store_device
from sllm_store.torch.route import choose_route
from sllm_store.torch.views import Views, needs_bytes, view_tensors

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from sllm_store.checkpoint.loaded import Loaded, Placed


class LoadedDict(dict[str, torch.Tensor]):
    """A state dict, with where it came from.

    `store` is the address of the store that loaded it, or 'in-process'; `tier` where the bytes
    were ('device', 'host', 'disk', 'mixed'); `directory` has the checkpoint's small files;
    `buffers` are the saved tensors that belong to the module but not to its state dict.
    """

    store: str
    tier: str
    directory: Path
    buffers: dict[str, torch.Tensor]

    @classmethod
    def of(cls, loaded: Loaded, views: Views | None = None) -> LoadedDict:
        """Return the tensors of a load; `views` are those that it has already."""
        if views is None:
            views = view_tensors(loaded)
        state_dict = cls(views.tensors)
        state_dict.buffers = views.buffers
        state_dict.store = loaded.store
        state_dict.tier = loaded.tier
        state_dict.directory = loaded.directory
        return state_dict


def load_dict(  # noqa: PLR0913 - upstream's signature, and what it lacks
    model_path: str | os.PathLike[str],
    device_map: DeviceMap,
    storage_path: str | os.PathLike[str] | None = None,
    *,
    store: str | None = None,
    shared: bool = False,
    timeout_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadedDict:
    """Load a checkpoint's state dict.

    model_path is a path, or a name under storage_path (default: $STORAGE_PATH, else ~/models).
    device_map is a device ('cpu', 'cuda:1', 0, torch.device) or maps name prefixes to devices;
    the longest prefix that ends at a dot wins, '' is everything. store is None (the store at
    $SLLM_STORE_ADDRESS or the default address if it runs and serves the checkpoint, else this
    process), 'in-process', or a store's address. on_progress gets (bytes done, bytes in all).

    Returns every byte or raises one of sllm_store.errors. The tensors share memory that lives
    until the last of them is gone, in whatever order; writing to them changes only this process.
    With `shared` that is not so on GPUs: the tensors are in memory of the store that every process
    which loads this way sees. It is there at once if it is there already. Treat it as read-only:
    CUDA IPC has no such mapping, and an in-place write is seen by all. It goes with the store.
    """
    views: list[Views] = []

    def view(placed: Placed) -> None:
        views[:] = [] if needs_bytes(placed) else [view_tensors(placed)]

    with short_turns():
        route = choose_route(model_path, storage_path, store=store)
        devices = {
            prefix: store_device(device) for prefix, device in parse_device_map(device_map).items()
        }
        loaded = route.load(
            devices, shared=shared, timeout_s=timeout_s, on_progress=on_progress, on_placed=view
        )
        return LoadedDict.of(loaded, views[0] if views else None)
