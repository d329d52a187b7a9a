"""Sizes of the modules that stay on one device: two of upstream's files beside a model.

`no_split_modules.json` is {module: bytes of its parameters}; `tied_no_split_modules.json` is
[[[module, ...], bytes they share], ...]. ServerlessLLM's loader makes device maps of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import find_tied_parameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


MODULE_SIZES_FILE = "no_split_modules.json"
TIED_SIZES_FILE = "tied_no_split_modules.json"


def no_split_modules(model: PreTrainedModel) -> dict[str, int]:
    """Return the bytes of each leaf module and each module that its model keeps whole."""
    whole = _whole_classes(model)
    sizes: dict[str, int] = {}

    def visit(module: torch.nn.Module, path: str) -> None:
        children = list(module.named_children())
        if not children or type(module).__name__ in whole:
            sizes[path] = _parameter_bytes(module)
            return
        for name, child in children:
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return sizes


def tied_no_split_modules(model: PreTrainedModel) -> list[tuple[list[str], int]]:
    """Return the groups of those modules that share parameters, with the bytes they share."""
    modules = no_split_modules(model)
    groups = []
    for names in find_tied_parameters(model):
        owners = sorted({_owner(name, modules) for name in names})
        parameter = model.get_parameter(names[0])
        groups.append((owners, parameter.numel() * parameter.element_size()))
    return groups


def _whole_classes(model: PreTrainedModel) -> set[str]:
    names: set[str] = set()
    for module in model.modules():
        names.update(getattr(module, "_no_split_modules", None) or ())
    return names


def _parameter_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _owner(parameter: str, modules: dict[str, int]) -> str:
    """Return the listed module that a parameter is in; its own name if it is in none."""
    prefix = parameter
    while prefix not in modules and "." in prefix:
        prefix = prefix.rpartition(".")[0]
    return prefix if prefix in modules else parameter
