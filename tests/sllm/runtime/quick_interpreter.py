"""Triton's interpreter without what it works out anew for each operation: the same bits, sooner.

As it is, most of its time goes by on what never changes: which functions of the language a kernel
may call (looked for again in every call of one kernel's function by another), NumPy's type for
each of Triton's, the type of a tensor of a shape; and on overflows that it looks for and tells
nobody of.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from triton import language
from triton.language import core, semantic
from triton.runtime import interpreter

_PACKAGES = [language, core, language.tensor, language.math, core.tensor_descriptor_base]
# Asked before the interpreter puts its own in their places.
_BUILTINS = {
    package: [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]
    for package in _PACKAGES
}
_static_range = core.static_range
_broadcast = semantic.TritonSemantic.broadcast_impl_value
_look_for_overflow = semantic.TritonSemantic.binary_op_sanitize_overflow_impl
_unwrap = core._unwrap_if_constexpr
_are_equal = core.dtype.__eq__
_patch_language = interpreter._patch_lang
_numpy_type = interpreter._get_np_dtype
_make_block_type = core.block_type.__init__
_numpy_types: dict[str, np.dtype[Any]] = {}
_languages: dict[Any, list[Any]] = {}
_block_types: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}


def install() -> None:
    """Have the interpreter keep what it has worked out."""
    interpreter._patch_lang = _patch_language_once
    interpreter._patch_builtin = _patch_builtins
    interpreter._get_np_dtype = _known_numpy_type
    core.block_type.__init__ = _make_known_block_type
    core.tensor.__init__ = _make_tensor
    core.dtype.__eq__ = _are_types_equal
    core._unwrap_if_constexpr = _unwrap_known
    semantic.TritonSemantic.broadcast_impl_value = _broadcast_unlike
    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = _look_for_overflow_to_tell


def _patch_language_once(function: Any) -> Any:
    """A function that a kernel calls finds the language as the kernel has patched it."""
    used = _languages.get(function)
    if used is None:
        modules = [one for one in function.__globals__.values() if inspect.ismodule(one)]
        used = _languages[function] = [one for one in (language, core) if one in modules]
    if all(one.static_range is not _static_range for one in used):
        return interpreter._LangPatchScope()
    return _patch_language(function)


def _patch_builtins(package: Any, builder: Any, scope: Any) -> None:
    for name in _BUILTINS[package]:
        member = getattr(package, name)
        if core.is_builtin(member):  # A test may have put its own there.
            interpreter._patch_attr(package, name, member, builder, scope)


def _known_numpy_type(kind: Any) -> np.dtype[Any]:
    scalar = kind.scalar
    if isinstance(scalar, core.pointer_type):
        return np.dtype(np.uint64)
    found = _numpy_types.get(scalar.name)
    if found is None:
        found = _numpy_types[scalar.name] = _numpy_type(scalar)
    return found


def _make_known_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    sides = tuple([side.value if isinstance(side, core.constexpr) else side for side in shape])
    known = _block_types.get((element_ty.name, sides))
    if known is None:
        _make_block_type(self, element_ty, shape)
        tensor_shape = core.tuple([core.constexpr(side) for side in self.shape])
        known = dict(vars(self), tensor_shape=tensor_shape, tensor_numel=core.constexpr(self.numel))
        _block_types[element_ty.name, sides] = known
    vars(self).update(known)


_SCALAR_SHAPE = core.tuple([])
_SCALAR_NUMEL = core.constexpr(1)


def _make_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - as Triton names it
    is_block = type.is_block()
    vars(self).update(
        handle=handle,
        type=type,
        dtype=type.scalar,
        shape=type.tensor_shape if is_block else _SCALAR_SHAPE,
        numel=type.tensor_numel if is_block else _SCALAR_NUMEL,
    )


def _are_types_equal(self: Any, other: Any) -> bool:
    return self is other or bool(_are_equal(self, other))


_PLAIN = {int, bool, float, core.dtype, core.block_type, core.pointer_type, core.tensor}


def _unwrap_known(value: Any) -> Any:
    return value if type(value) in _PLAIN else _unwrap(value)


def _broadcast_unlike(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
    if left.type.is_block() and right.type.is_block() and left.shape is right.shape:
        return left, right
    return _broadcast(self, left, right)  # type: ignore[no-any-return]


def _look_for_overflow_to_tell(self: Any, left: Any, right: Any, operation: Any) -> None:
    if self.builder.options.debug:
        _look_for_overflow(self, left, right, operation)
