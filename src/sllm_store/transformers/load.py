"""load_model: build the module on meta in one thread while the bytes move in another."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import InvalidCheckpointError, LoadCancelledError
from sllm_store.torch.devices import DeviceMap, parse_device_map, store_device
from sllm_store.torch.dtypes import parse_float_dtype
from sllm_store.torch.route import Route, choose_route
from sllm_store.transformers.description import Description, describe_directory
from sllm_store.transformers.fill import fill_model
from sllm_store.transformers.gguf_model import describe_gguf_model
from sllm_store.transformers.placement import (
    AUTOMATIC,
    Placement,
    dispatch,
    place,
    place_without_model,
    require_covered,
)
from sllm_store.transformers.quantize import load_quantized, parse_quantization
from sllm_store.transformers.skeleton import (
    build_on_meta,
    resolve_class,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    from sllm_store.checkpoint.loaded import Loaded
    from sllm_store.checkpoint.model import Checkpoint

HOST: Placement = {"": torch.device("cpu")}


def load_model(  # noqa: PLR0913, PLR0917 - upstream's signature, and what it lacks
    name: str | os.PathLike[str],
    device_map: DeviceMap = "auto",
    torch_dtype: str | torch.dtype | None = "auto",
    fully_parallel: bool = True,  # noqa: FBT001, FBT002 - upstream's signature
    storage_path: str | os.PathLike[str] | None = None,
    quantization_config: Any = None,
    hf_model_class: str | type[Any] = "AutoModelForCausalLM",
    *,
    dtype: str | torch.dtype | None = None,
    store: str | None = None,
    shared: bool = False,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    timeout_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PreTrainedModel:
    """Load a model from the store's format, or from safetensors or GGUF as published.

    name, storage_path, store, shared, timeout_s and on_progress are as for
    sllm_store.torch.load_dict.
    device_map is 'auto', 'balanced', 'balanced_low_0', 'sequential', a device, or a dictionary of
    modules to devices. dtype (or torch_dtype) 'auto' keeps what is stored; another one casts the
    floating tensors that `from_pretrained` would cast. With fully_parallel the module is built
    while the bytes move, else before. quantization_config is a bitsandbytes configuration or its
    dictionary. hf_model_class is the class that was saved, or an auto class.

    Returns the model in evaluation mode with its generation_config, tied weights and
    non-persistent buffers as they were saved. It is an ordinary module: it may be moved, cast,
    trained and saved. With `shared` its parameters need no gradient, because to train them in
    place would train those of every process; what is cast or quantised is a private copy.
    """
    wish = _Wish(
        device_map=device_map,
        dtype=parse_float_dtype(dtype if dtype is not None else torch_dtype),
        model_class=resolve_class(hf_model_class),
        quantization=parse_quantization(quantization_config),
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        overlap=fully_parallel,
        shared=shared,
    )
    route = choose_route(name, storage_path, store=store)
    return _Job(route, wish, timeout_s, on_progress).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the caller asked for, parsed."""

    device_map: DeviceMap
    dtype: torch.dtype | None
    model_class: type[Any]
    quantization: Any
    trust_remote_code: bool
    attn_implementation: str | None
    overlap: bool
    shared: bool


class _Job:
    """One load_model call."""

    def __init__(
        self,
        route: Route,
        wish: _Wish,
        timeout_s: float | None,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._route = route
        self._wish = wish
        self._timeout_s = timeout_s
        self._on_progress = on_progress
        self._cancelled = threading.Event()

    def run(self) -> PreTrainedModel:
        """Load the model, and give it what else its checkpoint says of it."""
        if self._route.path is None:
            assert self._route.store is not None
            with self._route.store as store:
                store.estimate_load(self._route.name)  # Raises if it has no such model.
            raise InvalidCheckpointError(
                f"{self._route.name}: the store at {self._route.store.address} knows it, but its "
                "config.json cannot be reached from here"
            )
        described = self._describe(open_checkpoint(self._route.path))
        quantized = getattr(described.config, "quantization_config", None) is not None
        if self._wish.quantization is not None or quantized:
            model = self._run_quantized(described)
        else:
            model = self._run_plain(described)
        if described.generation_config is not None and model.can_generate():
            model.generation_config = described.generation_config
        model.name_or_path = str(self._route.path)
        if self._wish.shared:
            model.requires_grad_(requires_grad=False)
        model.train(mode=False)
        return model

    def _describe(self, checkpoint: Checkpoint) -> Description:
        if checkpoint.format == "gguf":
            return describe_gguf_model(checkpoint, self._wish.dtype)
        return describe_directory(
            checkpoint, self._wish.dtype, trust_remote_code=self._wish.trust_remote_code
        )

    def _run_plain(self, described: Description) -> PreTrainedModel:
        placement = place_without_model(self._wish.device_map, described.size_bytes)
        target = HOST if described.on_host else placement
        if self._wish.overlap and target is not None:
            with self._in_background(target) as loading:
                model = self._build(described)
                placement = placement or self._place(model)
                require_covered(model, placement)
                loaded = loading.result()
        else:
            model = self._build(described)
            placement = placement or self._place(model)
            require_covered(model, placement)
            loaded = self._load(target or placement)
        fill_model(
            model,
            described.view(loaded),
            placement,
            dtype=self._wish.dtype,
            published=described.published,
            directory=loaded.directory,
        )
        dispatch(model, placement)
        return model

    def _run_quantized(self, described: Description) -> PreTrainedModel:
        device_map = self._wish.device_map
        with self._in_background(HOST) as loading:
            model_class = type(self._build(described))
            loaded = loading.result()
        if not isinstance(device_map, str) or device_map not in AUTOMATIC:
            device_map = parse_device_map(device_map)
        return load_quantized(
            model_class,
            described.config,
            described.view(loaded).tensors,
            directory=loaded.directory,
            dtype=self._wish.dtype or "auto",
            device_map=device_map,
            quantization_config=self._wish.quantization,
            attn_implementation=self._wish.attn_implementation,
        )

    def _place(self, model: PreTrainedModel) -> Placement:
        assert isinstance(self._wish.device_map, str), "others are placed without the model"
        return place(model, self._wish.device_map)

    def _build(self, described: Description) -> PreTrainedModel:
        return build_on_meta(
            described.config,
            self._wish.model_class,
            described.dtype,
            trust_remote_code=self._wish.trust_remote_code,
            attn_implementation=self._wish.attn_implementation,
        )

    @contextmanager
    def _in_background(self, placement: Placement) -> Iterator[Future[Loaded]]:
        """Load in another thread; leaving by an exception cancels the load and waits for it."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sllm-load") as executor:
            try:
                yield executor.submit(self._load, placement)
            except BaseException:
                self._cancelled.set()
                raise

    def _load(self, placement: Placement) -> Loaded:
        devices = {prefix: store_device(device) for prefix, device in placement.items()}
        # A publisher's name may begin with none of the module's; it is moved when it is assigned.
        devices.setdefault("", next(iter(devices.values())))
        return self._route.load(
            devices,
            shared=self._wish.shared,
            timeout_s=self._timeout_s,
            on_progress=self._report_progress,
        )

    def _report_progress(self, bytes_done: int, bytes_total: int) -> None:
        if self._cancelled.is_set():
            raise LoadCancelledError(f"{self._route.name}: its model could not be built")
        if self._on_progress is not None:
            self._on_progress(bytes_done, bytes_total)
