"""One function per loader: a directory of safetensors files to a dict of tensors on a device.

Peers are used as their own documentation shows. A loader that is not installed is left out of the
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from sllm_store.stream import load_checkpoint
from sllm_store.torch import load_dict
from sllm_store.torch.devices import store_device
from sllm_store.torch.load import LoadedDict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


def files_of(directory: Path) -> list[str]:
    """Return a checkpoint's files, in order."""
    return [str(path) for path in sorted(directory.glob("*.safetensors"))]


def ours_store(directory: Path, device: str, store: str) -> Tensors:
    """Load through a running store."""
    return dict(load_dict(directory, device, store=store))


def ours_shared(directory: Path, device: str, store: str) -> Tensors:
    """Map what a running store has in GPU memory."""
    return dict(load_dict(directory, device, store=store, shared=True))


def ours_in_process(directory: Path, device: str, store: str) -> Tensors:
    """Load without a store."""
    return dict(load_dict(directory, device, store="in-process"))


def ours_direct(directory: Path, device: str, store: str) -> Tensors:
    """Load without a store, past the page cache whatever it holds."""
    return _load_by_mode(directory, device, "direct")


def ours_buffered(directory: Path, device: str, store: str) -> Tensors:
    """Load without a store, all of it through the page cache."""
    return _load_by_mode(directory, device, "buffered")


def safetensors(directory: Path, device: str, store: str) -> Tensors:
    """safetensors' load_file, file by file."""
    from safetensors.torch import load_file

    tensors: Tensors = {}
    for file in files_of(directory):
        tensors |= load_file(file, device=device)
    return tensors


def safetensors_prefetch(directory: Path, device: str, store: str) -> Tensors:
    """The prefetch of safetensors 0.9: all files at once."""
    from contextlib import ExitStack

    from safetensors import safe_open

    tensors: Tensors = {}
    with ExitStack() as stack:
        handles: list[Any] = [
            stack.enter_context(safe_open(file, framework="pt", device=device))
            for file in files_of(directory)
        ]
        loaders = [stack.enter_context(handle.prefetch(device=device)) for handle in handles]
        for loader in loaders:
            tensors.update(loader)
    return tensors


def transformers(directory: Path, device: str, store: str) -> Tensors:
    """transformers' from_pretrained; the directory needs a config.json."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, device_map=device)
    return dict(model.state_dict())


def fastsafetensors(directory: Path, device: str, store: str) -> Tensors:
    """fastsafetensors without GPUDirect Storage."""
    import fastsafetensors as peer

    loader = peer.SafeTensorsFileLoader(peer.SingleGroup(), device=device, nogds=True)
    loader.add_filenames({0: files_of(directory)})
    buffers = loader.copy_files_to_device()
    return {name: buffers.get_tensor(name) for name in list(buffers.key_to_rank_lidx)}


def instanttensor(directory: Path, device: str, store: str) -> Tensors:
    """InstantTensor with its defaults: tensors own their memory."""
    import instanttensor as peer

    with peer.safe_open(files_of(directory), framework="pt", device=torch.device(device)) as file:
        return dict(file.tensors())


def runai(directory: Path, device: str, store: str) -> Tensors:
    """The Run:ai model streamer, each tensor moved to the device as it comes."""
    from runai_model_streamer import SafetensorsStreamer

    tensors: Tensors = {}
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files_of(directory))
        for name, tensor in streamer.get_tensors():
            tensors[name] = tensor.clone().to(device) if device == "cpu" else tensor.to(device)
    return tensors


def _load_by_mode(directory: Path, device: str, mode: str) -> Tensors:
    where = store_device(torch.device(device))
    return dict(LoadedDict.of(load_checkpoint(directory, {"": where}, mode=mode)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A way to load. `modules` are imported before the clock starts.

    A compressed one loads the checkpoint as it was saved with --compress.
    """

    load: Callable[[Path, str, str], Tensors]
    modules: tuple[str, ...]
    through_store: bool = False
    compressed: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether its package is here."""
        return find_spec(self.modules[0].partition(".")[0]) is not None


OURS = ("sllm_store.torch",)
PREFETCH = "safetensors 0.9 prefetch"
LOADERS: dict[str, Loader] = {
    "ours, in-process": Loader(load=ours_in_process, modules=OURS),
    "ours, direct reads": Loader(load=ours_direct, modules=OURS),
    "ours, buffered reads": Loader(load=ours_buffered, modules=OURS),
    "ours, in-process, compressed": Loader(load=ours_in_process, modules=OURS, compressed=True),
    "ours, store": Loader(load=ours_store, modules=OURS, through_store=True),
    "ours, store, compressed": Loader(
        load=ours_store, modules=OURS, through_store=True, compressed=True
    ),
    "ours, shared": Loader(load=ours_shared, modules=OURS, through_store=True),
    "safetensors": Loader(load=safetensors, modules=("safetensors.torch",)),
    PREFETCH: Loader(load=safetensors_prefetch, modules=("safetensors.torch",)),
    "transformers": Loader(load=transformers, modules=("transformers",)),
    "fastsafetensors": Loader(load=fastsafetensors, modules=("fastsafetensors",)),
    "InstantTensor": Loader(load=instanttensor, modules=("instanttensor",)),
    "Run:ai streamer": Loader(load=runai, modules=("runai_model_streamer",)),
}
