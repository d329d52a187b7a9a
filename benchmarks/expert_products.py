"""How near do the experts of a layer come to the bandwidth of the device's memory?

Experts of Qwen3.5-MoE-397B's shapes lie in slots, in planes; each token is sent to some of them. A
launch for all pairs is compared with experts one after another, and with the time that the bytes of
the experts that are asked for take at the rate of a large copy, measured in the same run. Each
repeat reads other experts, so that none of them is in the device's cache.

    python -m benchmarks.expert_products --out FILE.json [--tokens 1 4 16] [--formats Q4_0 Q4_K]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import kernel_cases
from benchmarks.kernel_cases import Case, measure_limits, random_planes, seconds_of
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.expert_images import ExpertPlanes
from sllm.runtime.weights.grouped import ResidentGroup, SlotProducts
from sllm.runtime.weights.images import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.runtime.kernels.layout import Planes

FORMATS = ("Q4_0", "Q4_K", "Q6_K", "Q8_0")
HIDDEN, WIDTH, EXPERTS, CHOSEN = 4096, 1024, 128, 10
REPEATS = 8
_COPIED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ExpertCase:
    """Tokens, the experts that each of them is sent to, and all experts of a layer."""

    x: torch.Tensor
    chosen: torch.Tensor
    shares: torch.Tensor
    grouped: ResidentGroup
    experts: tuple[ExpertPlanes, ...]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the experts that are asked for, each once."""
        planes = self.experts[0]
        each = planes.gate.size_bytes + planes.up.size_bytes + planes.down.size_bytes
        return each * len(self.chosen.unique())

    def group(self) -> torch.Tensor:
        """Return the sums, computed in a few launches."""
        return self.grouped(self.x, self.chosen, self.shares)

    def loop(self) -> torch.Tensor:
        """Return the sums, computed by one expert after another."""
        out = torch.zeros_like(self.x)
        for number in self.chosen.unique().tolist():
            rows, ranks = torch.where(self.chosen == number)
            gate, up, down = (PlanarMatrix(planes) for planes in _matrices(self.experts[number]))
            some = self.x[rows]
            inner = torch.nn.functional.silu(gate.linear(some)) * up.linear(some)
            out.index_add_(0, rows, down.linear(inner) * self.shares[rows, ranks].unsqueeze(-1))
        return out


def make_case(
    name: str, *, tokens: int, width: int, hidden: int, experts: int, chosen: int
) -> ExpertCase:
    """Return experts of random weights in slots on the GPU, and tokens that are sent to some."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(tokens)
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}

    def expert() -> dict[str, torch.Tensor | PlanarMatrix]:
        return {
            key: PlanarMatrix(
                random_planes(Case(format=name, rows=rows, columns=columns, tokens=1), generator)
            )
            for key, (rows, columns) in shapes.items()
        }

    image = Image(expert())
    memory = torch.empty((experts, image.size_bytes), dtype=torch.uint8, device=device)
    found = []
    for slot in memory:
        image.write(slot, expert())
        planes = [matrix.planes for matrix in image.view(slot).values()]  # type: ignore[union-attr]
        found.append(ExpertPlanes(*planes))
    products = SlotProducts(found[0], image.size_bytes)
    scores = torch.rand((tokens, experts), generator=generator, device=device)
    shares = torch.rand((tokens, chosen), generator=generator, device=device).bfloat16()
    x = torch.randn((tokens, hidden), generator=generator, device=device).bfloat16()
    return ExpertCase(
        x=x,
        chosen=scores.topk(chosen).indices,
        shares=shares / shares.sum(-1, keepdim=True),
        grouped=ResidentGroup(products, {number: number for number in range(experts)}),
        experts=tuple(found),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--formats", nargs="+", choices=list(kernel_cases.FORMATS), default=list(FORMATS)
    )
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    limits = measure_limits(device, _COPIED_BYTES)
    rows = []
    for name in options.formats:
        for tokens in options.tokens:
            row = _measure(name, tokens, limits["copy_gb_s"])
            rows.append(row)
    found = {"device": torch.cuda.get_device_name(device), "limits": limits, "rows": rows}
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def _measure(name: str, tokens: int, copy_gb_s: float) -> dict[str, object]:
    case = make_case(
        name, tokens=tokens, width=WIDTH, hidden=HIDDEN, experts=EXPERTS, chosen=CHOSEN
    )
    moved = [
        replace(case, chosen=(case.chosen + CHOSEN * turn) % EXPERTS) for turn in range(REPEATS)
    ]
    seconds = seconds_of([partial(ExpertCase.group, other) for other in moved], case.x.device)
    error = (case.group() - case.loop()).abs().max() / case.loop().abs().max()
    rate = case.size_bytes / seconds / 1e9
    return {
        "format": name,
        "tokens": tokens,
        "experts": len(case.chosen.unique()),
        "bytes": case.size_bytes,
        "us": seconds * 1e6,
        "gb_s": rate,
        "fraction_of_copy": rate / copy_gb_s,
        "error": float(error),
    }


def _matrices(planes: ExpertPlanes) -> tuple[Planes, Planes, Planes]:
    return planes.gate, planes.up, planes.down


if __name__ == "__main__":
    main()
