"""WeightSource: the protocol between a forward pass and its weights.

A forward pass asks for one layer after another, in order, uses it and lets it go. What is under
the protocol decides where a layer comes from and how long it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch

    from sllm.runtime.quant.matrix import Matrix


# Products of more are not bound by launches, and decode a whole matrix into memory.
_JOINED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert's MLP."""

    gate: Matrix
    up: Matrix
    down: Matrix


class ExpertGroup(Protocol):
    """Computes with the experts of one layer that each token of a small batch was sent to."""

    @property
    def most_pairs(self) -> int | None:
        """Return for how many pairs of a token and an expert no host is waited for; None: any."""

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return each token's sum over its experts, (tokens, chosen), by their shares.

        Of a token for which -1 is chosen, no expert is asked for, where that spares anything.
        """


class ExpertSource(Protocol):
    """The experts of one layer, fetched by number."""

    @property
    def capacity(self) -> int:
        """Return the most experts that one lease may have."""

    @property
    def grouped(self) -> ExpertGroup | None:
        """Return what computes small batches at once; None where experts go one by one."""

    def lease(self, numbers: Sequence[int]) -> AbstractContextManager[Mapping[int, Expert]]:
        """Return these experts (distinct) for as long as the context is open.

        Iterating gives them in the order in which they are there; taking one waits until it is, and
        raises what fetching it raised.
        """


@dataclass(frozen=True, slots=True)
class Weights:
    """Some tensors by name: matrices in their scheme, and vectors (norms, biases) as floats.

    joined: matrices over the rows of several, by the names of those linear layers.
    """

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, torch.Tensor]
    experts: ExpertSource | None = None
    joined: Mapping[tuple[str, ...], Matrix] = field(default_factory=dict)

    def project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return x through the linear layer of this name, with its bias if it has one."""
        return self._shift(name, self.matrices[f"{name}.weight"].linear(x))

    def project_all(self, names: tuple[str, ...], x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return x through each of these linear layers, whose rows may be apart in memory.

        They are one product where their matrices are joined and tokens are few.
        """
        matrix = self.joined.get(names) if len(x) <= _JOINED_TOKENS else None
        if matrix is None:
            return [self.project(name, x) for name in names]
        rows = [self.matrices[f"{name}.weight"].shape[0] for name in names]
        parts = matrix.linear(x).split(rows, dim=-1)
        return [self._shift(name, y) for name, y in zip(names, parts, strict=True)]

    def _shift(self, name: str, y: torch.Tensor) -> torch.Tensor:
        bias = self.vectors.get(f"{name}.bias")
        return y if bias is None else y + bias.to(y.dtype)


class WeightSource(Protocol):
    """All weights of one model. `ends` has what is not in a layer: embedding, norm and head."""

    @property
    def stays(self) -> bool:
        """Return whether every layer's weights are at one place for good."""

    @property
    def ends(self) -> Weights:
        """Return the weights before the first layer and after the last one; always there."""

    def layer(self, index: int) -> AbstractContextManager[Weights]:
        """Return a layer's weights for as long as the context is open; names without prefix."""
