"""load_model gives the model that from_pretrained gives, bit for bit, and a usable one."""

from __future__ import annotations

import gc
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from sllm_store import transformers as adapter
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import (
    CheckpointNotFoundError,
    DeviceError,
    InvalidCheckpointError,
    InvalidRequestError,
    StoreUnavailableError,
)
from sllm_store.torch import load_dict, save_dict
from sllm_store.transformers import save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = ["auto", "float32", torch.bfloat16, torch.float16]
load_model: Any = adapter.load_model  # Transformers' own methods are not annotated.
HERE: dict[str, Any] = {"device_map": "cpu", "store": "in-process"}


@pytest.fixture
def own(published: Any, tmp_path: Path) -> Path:
    """The published model, saved in the store's format."""
    save_model(published.from_pretrained(), tmp_path / "own")
    return tmp_path / "own"


def require_same(ours: Any, theirs: Any, logits: Callable[..., torch.Tensor]) -> None:
    assert torch.equal(logits(ours), logits(theirs))
    expected = theirs.state_dict()
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    expected = dict(theirs.named_buffers())
    found = dict(ours.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_our_format_loads_the_model_that_from_pretrained_loads(
    own: Path, published: Any, dtype: Any, logits: Callable[..., torch.Tensor]
) -> None:
    ours = load_model(own, dtype=dtype, hf_model_class=published.auto_class, **HERE)
    require_same(ours, published.from_pretrained(dtype=dtype), logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_load_in_place_as_from_pretrained_loads_them(
    published: Any, dtype: Any, logits: Callable[..., torch.Tensor]
) -> None:
    ours = load_model(
        published.path, torch_dtype=dtype, hf_model_class=published.auto_class, **HERE
    )
    require_same(ours, published.from_pretrained(dtype=dtype), logits)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_an_imported_publication_loads_as_from_pretrained_loads_it(
    published: Any, tmp_path: Path, dtype: str, logits: Callable[..., torch.Tensor]
) -> None:
    import_checkpoint(published.path, tmp_path / "m")
    ours = load_model(tmp_path / "m", dtype=dtype, hf_model_class=published.auto_class, **HERE)
    require_same(ours, published.from_pretrained(dtype=dtype), logits)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_sharded_safetensors_load_in_place(
    publish: Any, name: str, tmp_path: Path, logits: Callable[..., torch.Tensor]
) -> None:
    model = publish(name).from_pretrained()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(logits(load_model(tmp_path, **HERE)), logits(model))


def test_the_dtype_of_the_checkpoint_may_differ_from_the_one_in_its_config(
    publish: Any, tmp_path: Path, logits: Callable[..., torch.Tensor]
) -> None:
    published = publish("llama")
    published.from_pretrained().float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    ours = load_model(tmp_path, **HERE)
    require_same(ours, AutoModelForCausalLM.from_pretrained(tmp_path), logits)
    assert ours.dtype == torch.bfloat16


def test_wb1_inv_freq_stays_float32_whatever_the_model_is_cast_to(
    publish: Any, tmp_path: Path
) -> None:
    save_model(publish("llama").from_pretrained(), tmp_path / "m")
    reference = publish("llama").from_pretrained().model.rotary_emb.inv_freq
    for dtype in ("auto", "float16", "bfloat16"):
        loaded = load_model(tmp_path / "m", torch_dtype=dtype, **HERE).model.rotary_emb.inv_freq
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, reference)


def test_a_non_persistent_buffer_comes_back_as_it_was_saved(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    model.model.rotary_emb.inv_freq.mul_(0.5)
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", **HERE)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_wb2_the_generation_config_is_loaded(own: Path, published: Any) -> None:
    for path in (own, published.path):
        loaded = load_model(path, hf_model_class=published.auto_class, **HERE)
        assert loaded.generation_config.eos_token_id == [2, 7]
        assert loaded.generation_config.do_sample is True
        assert loaded.generation_config.to_dict() == (
            published.from_pretrained().generation_config.to_dict()
        )


def test_without_a_generation_config_file_the_settings_are_from_pretraineds(
    publish: Any, tmp_path: Path
) -> None:
    published = publish("opt")
    published.from_pretrained().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    ours = load_model(tmp_path, **HERE).generation_config.to_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.to_dict()
    assert ours == theirs


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_wb3_the_native_dtype_is_kept(publish: Any, tmp_path: Path, dtype: str) -> None:
    model = publish("llama").from_pretrained(dtype=dtype)
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", **HERE)
    assert loaded.dtype == getattr(torch, dtype)
    assert loaded.config.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("fully_parallel", [True, False])
def test_the_module_is_built_in_the_callers_thread_beside_the_load(
    publish: Any,
    tmp_path: Path,
    fully_parallel: bool,  # noqa: FBT001
    logits: Any,
) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m")
    threads = []

    def on_progress(done: int, total: int) -> None:
        assert 0 <= done <= total
        threads.append(threading.current_thread())

    loaded = load_model(
        tmp_path / "m", fully_parallel=fully_parallel, on_progress=on_progress, **HERE
    )
    assert torch.equal(logits(loaded), logits(model))
    assert all((t is threading.main_thread()) is not fully_parallel for t in threads)


def test_tied_weights_are_one_parameter_and_stay_so_after_a_cast(
    publish: Any, tmp_path: Path
) -> None:
    for name in ("llama", "gpt2", "opt", "t5"):
        published = publish(name)
        save_model(published.from_pretrained(), tmp_path / name)
        for path in (tmp_path / name, published.path):
            for dtype in ("auto", "float32"):
                model = load_model(path, dtype=dtype, hf_model_class=published.auto_class, **HERE)
                assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_parameters_that_the_user_tied_are_tied_again(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    save_model(model, tmp_path / "m")
    for dtype in ("auto", "float32"):
        layers = load_model(tmp_path / "m", dtype=dtype, **HERE).model.layers
        assert layers[1].mlp.up_proj.weight is layers[0].mlp.up_proj.weight


def test_weights_that_the_user_untied_stay_apart(publish: Any, tmp_path: Path, logits: Any) -> None:
    model = publish("llama").from_pretrained()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", **HERE)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("source", ["own", "published"])
def test_the_model_is_an_ordinary_module(
    publish: Any, tmp_path: Path, logits: Any, source: str
) -> None:
    published = publish("llama")
    reference = published.from_pretrained()
    path = published.path
    if source == "own":
        path = tmp_path / "own"
        save_model(reference, path)
    expected = logits(reference)
    model = load_model(path, **HERE)
    assert not model.training
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), expected)
    del model.model.embed_tokens.weight
    model = load_model(path, **HERE).float()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.tensor([[5, 17, 3, 99]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(model.eval()), expected.float())
    assert torch.equal(logits(load_model(path, **HERE)), expected)
    assert torch.equal(logits(load_model(path, **HERE).half()), logits(reference.half()))


def test_a_model_saved_from_a_loaded_moe_has_published_names(
    publish: Any, tmp_path: Path, logits: Any
) -> None:
    published = publish("qwen3-moe")
    save_model(published.from_pretrained(), tmp_path / "own")
    for number, path in enumerate((tmp_path / "own", published.path)):
        again = tmp_path / f"again{number}"
        load_model(path, **HERE).save_pretrained(again)
        ours, theirs = load_dict(again, "cpu"), load_dict(published.path, "cpu")
        assert ours.keys() == theirs.keys()
        expected = logits(published.from_pretrained())
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), expected)


def test_writing_to_a_loaded_model_does_not_change_the_checkpoint(
    publish: Any, tmp_path: Path, logits: Any
) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", **HERE)
    with torch.no_grad():
        loaded.model.embed_tokens.weight.zero_()
    assert torch.equal(logits(load_model(tmp_path / "m", **HERE)), logits(model))


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        "balanced",
        "balanced_low_0",
        "sequential",
        "cpu",
        torch.device("cpu"),
        {"": "cpu"},
        {"model": "cpu", "lm_head": "cpu"},
    ],
    ids=str,
)
def test_wb5_every_way_to_say_cpu_works(publish: Any, device_map: Any, logits: Any) -> None:
    if torch.cuda.is_available() and isinstance(device_map, str) and device_map != "cpu":
        pytest.skip("with a GPU, this means the GPU")
    published = publish("llama")
    loaded = load_model(published.path, device_map=device_map, store="in-process")
    assert torch.equal(logits(loaded), logits(published.from_pretrained()))
    assert set(loaded.hf_device_map.values()) == {torch.device("cpu")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device_map", [0, "cuda", "cuda:0", {"": 0}], ids=str)
def test_a_gpu_that_is_not_there_is_named(publish: Any, device_map: Any) -> None:
    with pytest.raises(DeviceError, match="no usable GPU here"):
        load_model(publish("llama").path, device_map=device_map, store="in-process")


def test_a_device_map_that_leaves_modules_out_is_refused(publish: Any) -> None:
    with pytest.raises(InvalidRequestError, match="leaves out"):
        load_model(publish("llama").path, device_map={"model": "cpu"}, store="in-process")


def test_upstreams_positional_arguments_are_accepted(
    publish: Any, tmp_path: Path, logits: Any
) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "models" / "facebook" / "opt")
    loaded = load_model("facebook/opt", "auto", "float32", True, tmp_path / "models")  # noqa: FBT003
    assert loaded.dtype == torch.float32
    loaded = load_model("facebook/opt", storage_path=tmp_path / "models", torch_dtype="bfloat16")
    assert torch.equal(logits(loaded.cpu()), logits(model))


def test_a_concrete_class_and_its_name_are_accepted(publish: Any) -> None:
    path = publish("llama").path
    assert type(load_model(path, hf_model_class="LlamaForCausalLM", **HERE)) is LlamaForCausalLM
    assert type(load_model(path, hf_model_class=LlamaForCausalLM, **HERE)) is LlamaForCausalLM


OTHER_CLASSES = ["NoSuchClass", "AutoTokenizerX", "__name__", "logging", "T5EncoderModel"]


@pytest.mark.parametrize("name", OTHER_CLASSES)
def test_a_class_that_is_no_model_of_this_kind_is_refused(publish: Any, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"hf_model_class|LlamaConfig as T5EncoderModel"):
        load_model(publish("llama").path, hf_model_class=name, **HERE)


@pytest.mark.parametrize("dtype", ["float99", "int8", torch.int32, 5])
def test_a_dtype_that_no_model_has_is_refused(publish: Any, dtype: Any) -> None:
    with pytest.raises(InvalidRequestError, match="dtype"):
        load_model(publish("llama").path, dtype=dtype, **HERE)


def test_missing_and_unexpected_tensors_are_listed(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m")
    state = dict(load_dict(tmp_path / "m", "cpu", store="in-process"))
    del state["model.norm.weight"]
    state["model.extra"] = torch.ones(3)
    save_dict(state, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text((tmp_path / "m" / "config.json").read_text())
    with pytest.raises(InvalidCheckpointError) as caught:
        load_model(tmp_path / "broken", **HERE)
    assert "model.norm.weight" in str(caught.value)
    assert "model.extra" in str(caught.value)


@pytest.mark.parametrize("source", ["own", "published"])
def test_a_tensor_of_another_shape_is_named(publish: Any, tmp_path: Path, source: str) -> None:
    path = tmp_path / "m"
    model = publish("llama").from_pretrained()
    (save_model if source == "own" else type(model).save_pretrained)(model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    with pytest.raises(InvalidCheckpointError, match=r"mlp.*stored"):
        load_model(path, **HERE)


def test_a_checkpoint_without_config_says_so(tmp_path: Path) -> None:
    save_dict({"a": torch.ones(2)}, tmp_path / "m")
    with pytest.raises(InvalidCheckpointError, match=r"config\.json"):
        load_model(tmp_path / "m", **HERE)


def test_wa8_a_load_that_fails_gives_no_model(publish: Any, tmp_path: Path) -> None:
    save_model(publish("llama").from_pretrained(), tmp_path / "m")
    data = tmp_path / "m" / "tensor.data_0"
    data.write_bytes(data.read_bytes()[:-4096])
    with pytest.raises(InvalidCheckpointError):
        load_model(tmp_path / "m", **HERE)


def test_nothing_at_the_path_is_said_plainly(
    tmp_path: Path, start_store: Callable[..., Any]
) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nothing at"):
        load_model("nobody/nothing", storage_path=tmp_path, store="in-process")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint 'nobody/nothing' in"):
        load_model("nobody/nothing", store=start_store(tmp_path).address)


def test_a_store_that_does_not_answer_is_an_error(publish: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="no store is running"):
        load_model(publish("llama").path, store=f"unix:{tmp_path}/none.sock")


def test_the_log_says_who_loaded(publish: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sllm_store"):
        load_model(publish("llama").path, **HERE)
    assert [r.getMessage() for r in caplog.records if "in-process" in r.getMessage()]


def test_the_callers_config_object_is_not_shared(publish: Any) -> None:
    path = publish("llama").path
    load_model(path, dtype="float32", **HERE)
    assert AutoConfig.from_pretrained(path).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "t5"])
def test_models_load_through_a_running_store(
    publish: Any, tmp_path: Path, start_store: Callable[..., Any], logits: Any, *, name: str
) -> None:
    published = publish(name)
    model = published.from_pretrained()
    save_model(model, tmp_path / "models" / "own")
    model.save_pretrained(tmp_path / "models" / "published")
    store = start_store(tmp_path / "models")
    options = {"hf_model_class": published.auto_class, "store": store.address, "device_map": "cpu"}
    for directory in ("own", "published"):
        for _ in range(2):
            loaded = load_model(directory, **options)
            require_same(loaded, model, logits)
            with torch.no_grad():
                loaded.get_input_embeddings().weight.zero_()
        assert torch.equal(
            logits(load_model(directory, dtype="float32", **options)),
            logits(published.from_pretrained(dtype="float32")),
        )


def test_wa10_a_model_survives_its_parts_and_its_store(
    publish: Any, tmp_path: Path, start_store: Callable[..., Any], logits: Any
) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "models" / "m")
    store = start_store(tmp_path / "models")
    loaded = load_model("m", store=store.address, device_map="cpu")
    embedding = loaded.model.embed_tokens.weight.detach().clone()
    loaded.set_input_embeddings(torch.nn.Embedding(160, 64, dtype=torch.bfloat16))
    loaded.lm_head.weight = torch.nn.Parameter(embedding.clone())
    gc.collect()
    with torch.no_grad():
        loaded.model.embed_tokens.weight.copy_(embedding)
    assert torch.equal(logits(loaded), logits(model))
    store.stop()
    assert torch.equal(logits(loaded), logits(model))


def test_a_checkpoint_of_upstreams_gets_the_buffers_it_lacks(
    publish: Any, tmp_path: Path, logits: Any
) -> None:
    for name in ("llama", "gpt2", "qwen3-moe"):
        model = publish(name).from_pretrained()
        save_model(model, tmp_path / name)
        (tmp_path / name / "checkpoint.json").unlink()
        require_same(load_model(tmp_path / name, **HERE), model, logits)


def test_models_of_different_dtypes_load_at_the_same_time(publish: Any, logits: Any) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16] * 6
    path = publish("llama").path
    with ThreadPoolExecutor(len(dtypes)) as executor:
        loads = [executor.submit(load_model, path, dtype=dtype, **HERE) for dtype in dtypes]
        models = [load.result() for load in loads]
    for dtype, model in zip(dtypes, models, strict=True):
        assert torch.equal(logits(model), logits(publish("llama").from_pretrained(dtype=dtype)))
    assert torch.get_default_dtype() == torch.float32


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "device_map", ["auto", 0, "cuda:0", {"": 0}, torch.device("cuda")], ids=str
)
@pytest.mark.parametrize("source", ["own", "published"])
def test_a_model_on_a_gpu_is_the_one_of_from_pretrained(
    publish: Any, tmp_path: Path, logits: Any, *, device_map: Any, source: str
) -> None:
    published = publish("qwen3-moe")
    save_model(published.from_pretrained(), tmp_path / "own")
    path = tmp_path / "own" if source == "own" else published.path
    ours = load_model(path, device_map=device_map, store="in-process")
    theirs = published.from_pretrained(device_map=0)
    ids = torch.tensor([[5, 17, 3, 99, 121, 64, 8, 2]], device="cuda")
    assert torch.equal(logits(ours, ids), logits(theirs, ids))
    assert {tensor.device for tensor in ours.state_dict().values()} == {torch.device("cuda", 0)}


@pytest.mark.gpu
@needs_gpu
def test_a_model_on_a_gpu_may_be_moved_cast_trained_and_saved(
    publish: Any, tmp_path: Path, logits: Any
) -> None:
    model = publish("llama").from_pretrained()
    expected = logits(model)
    save_model(model.to("cuda"), tmp_path / "m")
    loaded = load_model(tmp_path / "m", device_map=0, store="in-process")
    assert torch.equal(logits(loaded.cpu()), expected)
    loaded = load_model(tmp_path / "m", device_map=0, store="in-process").float().train()
    ids = torch.tensor([[5, 17, 3, 99]], device="cuda")
    loaded(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.gpu
@needs_gpu
def test_a_model_may_be_spread_over_a_gpu_and_the_host(publish: Any, logits: Any) -> None:
    device_map = {"model.layers.1": "cpu", "": 0}
    loaded = load_model(publish("llama").path, device_map=device_map, store="in-process")
    ids = torch.tensor([[5, 17, 3, 99, 121, 64, 8, 2]], device="cuda")
    theirs = publish("llama").from_pretrained(device_map=0)
    assert torch.allclose(logits(loaded, ids).float(), logits(theirs, ids).float(), atol=1e-2)
