"""A GGUF's own tokenizer as the files that Hugging Face's tokenizers and transformers read.

tokenizer.json is written directly in the `tokenizers` format, and parsed by that library before
it is written, so what it would refuse never reaches a disk.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sllm_store.convert.gguf_models import build_model
from sllm_store.convert.gguf_vocabulary import read_vocabulary
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from sllm_store.convert.gguf_metadata import GgufMetadata
    from sllm_store.convert.gguf_models import ModelParts
    from sllm_store.convert.gguf_vocabulary import Vocabulary

_TEMPLATE_KEY = "tokenizer.chat_template"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def build_tokenizer_files(metadata: GgufMetadata) -> dict[str, str]:
    """Return what describe_tokenizer does, once the tokenizers library has read it.

    Raises InvalidCheckpointError as well for what that refuses.
    """
    files = describe_tokenizer(metadata)
    _require_readable(files["tokenizer.json"], metadata)
    return files


def describe_tokenizer(metadata: GgufMetadata) -> dict[str, str]:
    """Return the text of each file, by its path in the checkpoint's directory.

    Raises InvalidCheckpointError when the tokenizer is of a kind that is not known exactly: a
    tokenizer that is nearly right is worse than none.
    """
    vocabulary = read_vocabulary(metadata)
    model = build_model(metadata, vocabulary)
    tokenizer = json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(vocabulary),
            "normalizer": model.normalizer,
            "pre_tokenizer": model.pre_tokenizer,
            "post_processor": _post_processor(vocabulary, model),
            "decoder": model.decoder,
            "model": model.model,
        },
        ensure_ascii=False,
    )
    config = _config(metadata, vocabulary, model)
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
    }
    return files | _chat_templates(metadata)


def _require_readable(text: str, metadata: GgufMetadata) -> None:
    try:
        Tokenizer.from_str(text)
    except Exception as error:
        raise InvalidCheckpointError(
            f"{metadata.path}: the tokenizers library refuses this vocabulary: {error}"
        ) from error


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {
            "id": id_,
            "content": vocabulary.tokens[id_],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": vocabulary.is_special(id_),
        }
        for id_ in vocabulary.added()
    ]


def _post_processor(vocabulary: Vocabulary, model: ModelParts) -> dict[str, Any] | None:
    """Return what puts the start and end tokens around a text; None where nothing does."""
    if not model.before and not model.after:
        return None

    def special(ids: tuple[int, ...], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": vocabulary.tokens[i], "type_id": type_id}} for i in ids]

    first = [
        *special(model.before, 0),
        {"Sequence": {"id": "A", "type_id": 0}},
        *special(model.after, 0),
    ]
    second = [
        *special(model.before if model.before_second else (), 1),
        {"Sequence": {"id": "B", "type_id": 1}},
        *special(model.after, 1),
    ]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {
            vocabulary.tokens[id_]: {
                "id": vocabulary.tokens[id_],
                "ids": [id_],
                "tokens": [vocabulary.tokens[id_]],
            }
            for id_ in {*model.before, *model.after}
        },
    }


def _config(metadata: GgufMetadata, vocabulary: Vocabulary, model: ModelParts) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(model.before),
        "add_eos_token": bool(model.after),
        "clean_up_tokenization_spaces": False,
    }
    config |= {f"{role}_token": vocabulary.tokens[id_] for role, id_ in vocabulary.roles.items()}
    if metadata.has("{arch}.context_length"):
        config["model_max_length"] = metadata.integer("{arch}.context_length")
    if metadata.has(_TEMPLATE_KEY):
        config["chat_template"] = metadata.text(_TEMPLATE_KEY)
    return config


def _chat_templates(metadata: GgufMetadata) -> dict[str, str]:
    """Return the default template's file and those of the named ones (tools, retrieval)."""
    files = {}
    if metadata.has(_TEMPLATE_KEY):
        files["chat_template.jinja"] = metadata.text(_TEMPLATE_KEY)
    for key in metadata.values:
        name = key.removeprefix(f"{_TEMPLATE_KEY}.")
        if name != key and _TEMPLATE_NAME.fullmatch(name):
            files[f"additional_chat_templates/{name}.jinja"] = metadata.text(key)
    return files
