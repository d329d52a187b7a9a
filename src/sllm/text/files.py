"""ModelFiles: what a checkpoint's small files say about text, parsed once."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sllm.core.errors import UnsupportedModelError
from sllm.text.kept_files import read_kept_files
from sllm_store.convert.small_files import TOKENIZER_FILE
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

DEFAULT_TEMPLATE = "default"
# What ends a turn, for models that say it in their template alone.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What a model says about its text.

    tokenizer: the contents of tokenizer.json, which alone says what is put around a text, and
    tokenizer_text: as a text. roles: special tokens by what they are for ('bos_token'). templates:
    chat templates by name. ends: ids that end an answer.
    """

    path: Path
    tokenizer: Mapping[str, Any]
    tokenizer_text: str
    roles: Mapping[str, str]
    templates: Mapping[str, str]
    ends: frozenset[int]

    @classmethod
    def read(cls, path: Path) -> ModelFiles:
        """Read a checkpoint of any format.

        Raises UnsupportedModelError if it has no tokenizer.json, InvalidCheckpointError naming the
        file that cannot be used, and what read_text_files raises.
        """
        texts = read_kept_files(path)
        if TOKENIZER_FILE not in texts:
            raise UnsupportedModelError(
                f"{path} has no {TOKENIZER_FILE}, so it cannot be asked in text: get that file "
                "from where the model was published"
            )
        files = {
            name: _parse(path, name, text) for name, text in texts.items() if name.endswith(".json")
        }
        config = files.get("tokenizer_config.json", {})
        stored = files[TOKENIZER_FILE]
        with _as_written(path, "added tokens"):
            tokenizer = _with_added(stored, config)
            ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        unchanged = tokenizer["added_tokens"] == stored.get("added_tokens")
        roles = _roles(files.get("special_tokens_map.json", {}) | config)
        with _as_written(path, "chat templates"):
            templates = _templates(path, texts, files)
        return cls(
            path=path,
            tokenizer=tokenizer,
            tokenizer_text=texts[TOKENIZER_FILE] if unchanged else json.dumps(tokenizer),
            roles=roles,
            templates=templates,
            ends=_ends(files, ids, roles=roles, templates=templates),
        )


@contextmanager
def _as_written(path: Path, what: str) -> Iterator[None]:
    """Tell what is not in the form that publishers' tools write it in."""
    try:
        yield
    except InvalidCheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpointError(
            f"{path}: the {what} of its tokenizer are not in a known form: {error!r}"
        ) from error


def _parse(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidCheckpointError(f"{path}: {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidCheckpointError(f"{path}: {name} is not a JSON object")
    return value


def _with_added(tokenizer: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer with those tokens that only tokenizer_config.json has."""
    added = list(tokenizer.get("added_tokens") or ())
    known = {token["id"] for token in added}
    for id_, token in (config.get("added_tokens_decoder") or {}).items():
        if int(id_) not in known:
            added.append({"id": int(id_), "normalized": False, "special": False, **_plain(token)})
    return {**tokenizer, "added_tokens": sorted(added, key=lambda token: token["id"])}


def _plain(token: Mapping[str, Any]) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip")
    return {**dict.fromkeys(flags, False), **{k: v for k, v in token.items() if k != "__type"}}


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
    """Return special tokens by role; either a text or an object with one."""
    roles = {}
    for role, value in config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if role.endswith("_token") and isinstance(token, str):
            roles[role] = token
    return roles


def _templates(
    path: Path, texts: Mapping[str, str], files: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the templates by name. Files of their own win over what is in the configuration."""
    configured = files.get("tokenizer_config.json", {}).get("chat_template")
    alone = files.get("chat_template.json", {}).get("chat_template")
    templates = {}
    if isinstance(configured, list):
        templates = {named["name"]: named["template"] for named in configured}
    elif configured is not None:
        templates[DEFAULT_TEMPLATE] = configured
    if alone is not None:
        templates[DEFAULT_TEMPLATE] = alone
    for name, text in texts.items():
        if name.endswith(".jinja"):
            short = name.rpartition("/")[2].removesuffix(".jinja")
            templates[DEFAULT_TEMPLATE if short == "chat_template" else short] = text
    if not all(isinstance(template, str) for template in templates.values()):
        raise InvalidCheckpointError(f"{path}: a chat template is not a text")
    return templates


def _ends(
    files: Mapping[str, Mapping[str, Any]],
    ids: Mapping[str, int],
    *,
    roles: Mapping[str, str],
    templates: Mapping[str, str],
) -> frozenset[int]:
    config = files.get("config.json", {})
    said = files.get("generation_config.json", {}).get("eos_token_id")
    ends = set(_id_list(said)) | set(_id_list(config.get("eos_token_id")))
    text_config = config.get("text_config")
    if isinstance(text_config, dict):
        ends |= set(_id_list(text_config.get("eos_token_id")))
    ends |= _known(ids, [roles.get("eos_token", "")])
    if said is None:
        shown = "".join(templates.values())
        ends |= _known(ids, [token for token in _END_OF_TURN if token in shown])
    return frozenset(ends)


def _id_list(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [id_ for id_ in values if isinstance(id_, int) and not isinstance(id_, bool)]


def _known(ids: Mapping[str, int], tokens: Iterable[str]) -> set[int]:
    return {ids[token] for token in tokens if token in ids}
