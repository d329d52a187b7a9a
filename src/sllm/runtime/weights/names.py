"""Tensor names: Hugging Face's, in all their prefixes, as a layer's number and a name within it."""

from __future__ import annotations

import re

_PREFIX = r"(?:model\.language_model\.|language_model\.model\.|model\.)?"
_LAYER = re.compile(_PREFIX + r"layers\.(\d{1,6})\.(.+)")
_END = re.compile(_PREFIX + r"(embed_tokens\.weight|norm\.weight|lm_head\.weight)")
_HEAD = re.compile(r"(?:language_model\.)?(lm_head\.weight)")
# What a language model does not need: draft layers, vision, and tables that are computed.
_UNUSED = re.compile(r"mtp\..*|(?:model\.)?visual\..*|.*rotary_emb\.inv_freq")


def split_name(name: str) -> tuple[int | None, str] | None:
    """Return (layer, name in it), (None, name) for what is around the layers, or None.

    None means that the forward pass has no use for the tensor, and that this is known to be right.
    A name that is not known comes back whole, for the caller to refuse.
    """
    if _UNUSED.fullmatch(name):
        return None
    if found := _LAYER.fullmatch(name):
        return int(found[1]), found[2]
    if found := _END.fullmatch(name) or _HEAD.fullmatch(name):
        return None, found[1]
    return None, name
