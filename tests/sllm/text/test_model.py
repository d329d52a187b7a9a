"""Requests become the ids that Transformers makes of them, from every format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import save_file
from tokenizers import processors
from transformers import AutoTokenizer

from sllm.core.errors import InvalidRequestError, UnsupportedModelError
from sllm.text.model import CHATML, TextModel
from sllm_store.errors import CheckpointNotFoundError, InvalidCheckpointError
from tests.fetch_vocabularies import default_directory
from tests.sllm.text.conftest import HERMES, MARKS, SPECIAL, TEMPLATES, WEATHER, byte_level
from tests.sllm_store.convert.conftest import TOKENS, add_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
TEXTS = ["", "Hello, wörld 😀", " two  spaces\n", "<s>in</s> text <|im_end|>", "<think>x</think>"]
CHAT = [{"role": "system", "content": "Be  brief. "}, {"role": "user", "content": "Why <b>?\n"}]


def _theirs(path: Path) -> Any:
    load: Any = AutoTokenizer.from_pretrained
    return load(path)


@pytest.mark.parametrize(
    ("around", "config"),
    [
        ("$A", {}),
        ("$A", {"add_bos_token": True}),
        ("<s> $A", {}),
        ("<s> $A", {"add_bos_token": False}),
        ("<s> $A </s>", {"add_bos_token": True, "add_eos_token": False}),
    ],
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_equal_those_of_transformers(
    template: str, around: str, config: dict[str, Any], publish: Callable[..., Path]
) -> None:
    tokenizer = byte_level()
    marks = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=marks)
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    path = publish(
        tokenizer,
        chat_template__jinja=TEMPLATES[template],
        tokenizer_config__json={**base, **config},
    )
    ours, theirs = TextModel.open(path), _theirs(path)
    for text in TEXTS:
        assert ours.encode(text, special=True) == theirs.encode(text)
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)
    options: Any = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    assert ours.prompt(CHAT) == theirs.apply_chat_template(CHAT, **options)
    assert ours.prompt(CHAT, tools=[WEATHER]) == theirs.apply_chat_template(
        CHAT, tools=[WEATHER], **options
    )
    assert ours.begin == (marks[0][1] if around.startswith("<s>") else None)


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, {"</s>"}),
        ({"generation_config__json": {"eos_token_id": 259}}, {"</s>", "<|im_end|>"}),
        ({"generation_config__json": {"eos_token_id": [257, 259]}}, {"</s>", "<|im_end|>"}),
        ({"config__json": {"text_config": {"eos_token_id": 258}}}, {"</s>", "<|im_start|>"}),
        ({"chat_template__jinja": HERMES}, {"</s>", "<|im_end|>"}),
    ],
)
def test_an_answer_ends_where_any_of_the_files_says(
    files: dict[str, Any], ends: set[str], publish: Callable[..., Path]
) -> None:
    model = TextModel.open(publish(**files))
    assert {model.token_bytes.table[end].decode() for end in model.ends} == ends


def test_tokens_that_only_the_configuration_has_are_recognised(
    publish: Callable[..., Path],
) -> None:
    added = {"content": "<extra>", "special": True, "lstrip": False, "normalized": False}
    model = TextModel.open(publish(tokenizer_config__json={"added_tokens_decoder": {"266": added}}))
    assert model.encode("a<extra>", special=False)[-1] == 266
    assert 266 in model.token_bytes.special


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        ("hermes", {"completion", "tools", "thinking"}),
        ("llama", {"completion", "tools"}),
        ("mistral", {"completion", "tools"}),
    ],
)
def test_templates_tell_what_a_model_can_do(
    template: str, capabilities: set[str], model: Callable[[str], TextModel]
) -> None:
    assert model(template).capabilities == capabilities


def test_text_is_inserted_between_two_others(publish: Callable[..., Path]) -> None:
    fill = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    model = TextModel.open(publish(byte_level((*SPECIAL, *fill))))
    assert "insert" in model.capabilities
    expected = "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>"
    assert model.insertion("def f(", "): pass") == model.encode(expected, special=False)


def test_a_model_without_marks_cannot_insert(publish: Callable[..., Path]) -> None:
    model = TextModel.open(publish())
    assert "insert" not in model.capabilities
    with pytest.raises(InvalidRequestError, match=r"suffix: .* cannot insert text"):
        model.insertion("a", "b")


def test_named_templates_are_for_requests_with_tools(publish: Callable[..., Path]) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with {{ tools | length }}"},
    ]
    path = publish(tokenizer_config__json={"chat_template": named})
    model = TextModel.open(path)
    assert model.render(CHAT) == "plain"
    assert model.render(CHAT, tools=[WEATHER]) == "with 1"
    assert model.template == "plain"
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates/tool_use.jinja").write_text("newer")
    (path / "chat_template.jinja").write_text("new")
    model = TextModel.open(path)
    assert (model.render(CHAT), model.render(CHAT, tools=[WEATHER])) == ("new", "newer")
    assert TextModel.open(path, template="mine").render(CHAT, tools=[WEATHER]) == "mine"


def test_another_template_needs_no_file_of_the_model(publish: Callable[..., Path]) -> None:
    path = publish(chat_template__jinja=HERMES)
    model = TextModel.open(path)
    other = TextModel.open(path, template="{{ bos_token }}mine")
    model.grammar("json")
    shutil.rmtree(path)
    lent = model.with_template("{{ bos_token }}mine")
    assert lent.prompt(CHAT) == other.prompt(CHAT) != model.prompt(CHAT)
    assert lent.template == "{{ bos_token }}mine"
    assert lent.capabilities == other.capabilities < model.capabilities
    assert (lent.begin, lent.ends) == (model.begin, model.ends)
    assert lent.token_bytes is model.token_bytes
    lent.grammar("json")
    with pytest.raises(InvalidRequestError, match=r"^template: .*not a Jinja template"):
        model.with_template("{% if %}")


def test_without_a_template_chatml_is_used_if_the_vocabulary_is_made_for_it(
    publish: Callable[..., Path],
) -> None:
    model = TextModel.open(publish())
    assert model.has_template
    assert model.template == CHATML
    assert model.render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_template_and_its_marks_messages_are_refused(
    publish: Callable[..., Path],
) -> None:
    model = TextModel.open(publish(byte_level(("<s>", "</s>"), MARKS)))
    assert not model.has_template
    assert model.template == ""
    with pytest.raises(InvalidRequestError, match=r"messages: .* has no chat template: ask for a"):
        model.render(CHAT)


def test_halves_of_surrogates_become_one_character_or_a_replacement(
    publish: Callable[..., Path],
) -> None:
    model = TextModel.open(publish())
    smile, half = json.loads('"\\ud83d\\ude00"'), json.loads('"\\ud83d"')
    assert model.encode(smile, special=False) == model.encode("😀", special=False)
    assert model.encode(half, special=False) == model.encode("\ufffd", special=False)


def test_files_that_cannot_be_used_are_refused_by_name(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointNotFoundError):
        TextModel.open(tmp_path / "nowhere")
    with pytest.raises(InvalidRequestError, match=r"not a Jinja template: line 1"):
        TextModel.open(publish(chat_template__jinja="{% if %}"))
    with pytest.raises(InvalidRequestError, match=r"the chat template is one of Go's"):
        TextModel.open(publish(chat_template__jinja="ok"), template="{{ .Prompt }}")
    with pytest.raises(InvalidCheckpointError, match=r"generation_config\.json is not JSON"):
        TextModel.open(publish(generation_config__json="{"))
    with pytest.raises(UnsupportedModelError, match=r"library refuses tokenizer\.json"):
        TextModel.open(publish(generation_config__json={}, tokenizer__json={"model": {}}))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer_config__json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "added tok"),
        ("tokenizer_config__json", {"added_tokens_decoder": [1]}, "added tokens of its"),
        ("tokenizer__json", {"model": {}, "added_tokens": [{"content": "y"}]}, "added tokens of"),
        ("tokenizer_config__json", {"chat_template": [1, 2]}, "chat templates of its tokenizer"),
        ("tokenizer_config__json", {"chat_template": [{"name": "x"}]}, "chat templates of its"),
        ("tokenizer_config__json", {"chat_template": 5}, "a chat template is not a text"),
    ],
)
def test_files_in_no_known_form_are_refused(
    publish: Callable[..., Path], name: str, content: object, told: str
) -> None:
    with pytest.raises(InvalidCheckpointError, match=told):
        TextModel.open(publish(**{name: content}))


def test_a_strange_text_config_says_nothing_of_ends(publish: Callable[..., Path]) -> None:
    assert TextModel.open(publish(config__json={"text_config": 5, "eos_token_id": 3})).ends >= {3}


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:

    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json"):
        TextModel.open(tmp_path)


def test_a_gguf_is_read_without_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer: Any = GGUFWriter(path, "llama")
    add_tokenizer(writer)
    writer.add_chat_template("{{ messages[0].content }}{{ eos_token }}")
    writer.add_eot_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = TextModel.open(path)
    assert model.ends == {0, 2}
    ids = [TOKENS.index("hello"), TOKENS.index("!"), 2]
    assert model.prompt([{"role": "user", "content": "hello!"}]) == ids


def test_smollm2_is_asked_as_its_publisher_means(smollm2: Path) -> None:
    model = TextModel.open(smollm2)
    golden = json.loads((ROOT / "tests/golden/smollm2/greedy.json").read_text())
    ids = model.prompt([{"role": "user", "content": "What is the capital of France?"}])
    assert ids[:12] == [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308]
    assert len(ids) == 37
    assert ids in [case["prompt"] for case in golden]
    assert model.ends == {2}
    assert model.begin is None
    assert model.capabilities == {"completion"}


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2", "deepseek-coder"])
def test_vocabularies_of_llama_cpp_are_opened(name: str) -> None:
    path = default_directory() / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"no {path}: run python -m tests.fetch_vocabularies")
    model = TextModel.open(path)
    assert model.ends
    ids = model.encode("Hello world", special=True)
    assert (ids[0] == model.begin) == (model.begin is not None)


def test_no_framework_is_imported() -> None:
    code = "import sys, sllm.text.model, sllm.text.parser; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "llguidance"} & set(ran.stdout.split())


def test_a_long_text_is_encoded_beside_other_threads(publish: Callable[..., Path]) -> None:
    model = TextModel.open(publish(byte_level()))
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks
    model.encode("many words " * 100_000, special=False)
    counted = ticks - before
    done.set()
    thread.join()
    assert counted > 10
