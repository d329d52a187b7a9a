"""`sllm-store load`: a tiny model with a tokenizer, through a store and without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.sllm_store.convert.conftest import TOKENS, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess

WORDS = ["<unk>", "Hello", ",", "my", "dog", "is", "cute", "and", "small"]
LLAMA_CONFIG: Any = LlamaConfig
TOKENIZER: Any = PreTrainedTokenizerFast


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random model as its publisher would publish it."""
    torch.manual_seed(1)
    path = tmp_path / "models" / "tiny"
    config = LLAMA_CONFIG(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        dtype="bfloat16",
    )
    published: Any = LlamaForCausalLM(config)
    published.to(torch.bfloat16).save_pretrained(path)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer: Any = TOKENIZER(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def saved(model: Path, run: Callable[..., Any]) -> Path:
    """The same model in the store's format, alone in its storage path."""
    storage = model.parents[1] / "storage"
    assert run("save", "--source", model, "--storage-path", storage).code == 0
    return storage


@pytest.fixture
def expected(model: Path) -> str:
    tokenizer = TOKENIZER.from_pretrained(model)
    reference: Any = LlamaForCausalLM.from_pretrained(model)
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    output = reference.generate(
        input_ids=inputs["input_ids"], max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def test_it_writes_what_the_published_model_writes(
    saved: Path, expected: str, run: Callable[..., Any]
) -> None:
    options = ("--store", "in-process", "--device", "cpu", "--max-new-tokens", 6)
    value = run("load", "--model", "tiny", "--storage-path", saved, *options, "--json").value
    assert value["text"] == expected
    assert value["store"] == "in-process"
    assert value["tier"] == "disk"
    assert value["device"] == "cpu"
    assert value["size_bytes"] > 0
    assert value["gb_per_s"] > 0
    assert value["load_s"] >= value["move_s"] > 0


def test_it_loads_through_the_store_and_says_from_which_tier(
    saved: Path,
    expected: str,
    start_store: Callable[..., StoreProcess],
    run: Callable[..., Any],
) -> None:
    address = start_store(saved).address
    options = ("--device", "cpu", "--max-new-tokens", 6)
    for tier in ("disk", "host"):
        done = run("load", "--model", "tiny", "--store", address, *options)
        assert done.code == 0
        assert done.out.startswith(expected)
        assert f"{tier}, by {address}" in done.out


def test_another_prompt_and_dtype_and_no_text(saved: Path, run: Callable[..., Any]) -> None:
    base = ("load", "--model", "tiny", "--storage-path", saved, "--store", "in-process", "--json")
    value = run(*base, "--device", "cpu", "--prompt", "my dog", "--dtype", "float32").value
    assert value["text"].startswith("my dog")
    assert run(*base, "--device", "cpu", "--max-new-tokens", 0).value["text"] is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_loaded_on_the_model(saved: Path, run: Callable[..., Any]) -> None:
    from peft import LoraConfig, get_peft_model

    from sllm_store.peft import save_lora
    from sllm_store.transformers import load_model

    base: Any = load_model(saved / "tiny", "cpu", store="in-process")
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2))
    save_lora(adapted, saved / "lora")
    value = run(
        *("load", "--model", "tiny", "--adapter", "--adapter-name", "lora", "--device", "cpu"),
        *("--storage-path", saved, "--store", "in-process", "--json"),
    ).value
    assert value["text"].startswith("Hello , my dog is cute")
    assert value["size_bytes"] > 0


def test_a_model_without_a_tokenizer_is_loaded_and_says_so(
    saved: Path, run: Callable[..., Any]
) -> None:
    for path in (saved / "tiny").glob("token*"):
        path.unlink()
    done = run("load", "--model", "tiny", "--storage-path", saved, "--store", "in-process")
    assert done.code == 0
    assert "so no text is written" in done.err
    assert "GB/s" in done.out


@pytest.mark.parametrize("precision", ["int8", "fp4", "nf4"])
def test_a_precision_without_bitsandbytes_says_what_to_install(
    saved: Path, run: Callable[..., Any], precision: str
) -> None:
    done = run("load", "--model", "tiny", "--storage-path", saved, "--precision", precision)
    assert done.code == 1
    assert "pip install bitsandbytes" in done.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "Missing option '--model'"),
        (["--model", "m", "--adapter"], "--adapter needs --adapter-name"),
        (["--model", "m", "--precision", "int3"], "'int3' is not one of"),
        (
            ["--model", "m", "--backend", "sglang"],
            "'sglang' is planned, and no part",
        ),
    ],
)
def test_wrong_usage_says_what_is_right(
    run: Callable[..., Any], args: list[str], says: str
) -> None:
    done = run("load", *args)
    assert done.code == 2
    assert says in done.err


def test_an_unknown_model_is_one_line(storage: Path, run: Callable[..., Any]) -> None:
    done = run("load", "--model", "none", "--storage-path", storage)
    assert done.code == 1
    assert done.err.startswith("error: no checkpoint 'none'")


def test_a_store_that_does_not_run_is_one_line(run: Callable[..., Any]) -> None:
    done = run("load", "--model", "none", "--address", "unix:/none")
    assert done.code == 1
    assert "no store is running at unix:/none: start one with `sllm-store start`" in done.err


def test_a_name_of_the_running_store_is_known_in_process_too(
    saved: Path,
    start_store: Callable[..., StoreProcess],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = start_store(saved)
    monkeypatch.setattr("sllm_store.cli.connection._default", lambda: store.address)
    options = ("--store", "in-process", "--device", "cpu", "--max-new-tokens", 0)
    done = run("load", "--model", "tiny", *options)
    assert done.code == 0
    assert "disk, by in-process" in done.out


def test_a_gguf_writes_with_the_tokenizer_that_it_holds(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    config = LLAMA_CONFIG(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    workshop = Workshop(tmp_path)
    workshop.from_model(tensors, config.to_dict(), architecture="llama")
    options = ("--store", "in-process", "--device", "cpu", "--max-new-tokens", 2)
    done = run("load", "--model", workshop.gguf, "--prompt", "hello", *options)
    assert done.code == 0
    assert done.out.startswith("hello")
    assert "tokenizer" not in done.err


def test_a_prompt_without_tokens_is_refused(saved: Path, run: Callable[..., Any]) -> None:
    options = ("--storage-path", saved, "--store", "in-process", "--device", "cpu")
    done = run("load", "--model", "tiny", "--prompt", "", *options)
    assert done.code == 1
    assert "--prompt '' has no tokens: write some text" in done.err
