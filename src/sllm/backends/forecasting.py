"""What a loaded model's engine says of itself: a Forecast, with what was measured since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.config.model import MoeConfig
from sllm.runtime.weights.forecast import TokenNeeds, plan_forecast
from sllm.runtime.weights.model_groups import ENDS
from sllm.runtime.weights.opening import device_needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm.runtime.weights.forecast import Forecast, Rates
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm.runtime.weights.stored import StoredWeights

_LOOKUPS_MIN = 1000  # Of experts; the hit rate of fewer says little.


def forecaster(
    model: ModelGroups, source: StoredWeights, rates: Rates, *, has_host: bool
) -> Callable[[], Forecast]:
    """Return what tells the forecast as of when it is called.

    has_host: whether the weights are on a device beside the host's memory.
    """
    needs = device_needs(model) if has_host else model.needs()
    mlps = [layer.mlp for layer in model.config.layers]
    chosen = sum(mlp.chosen for mlp in mlps if isinstance(mlp, MoeConfig))
    embedding_bytes = sum(
        tensor.size_bytes
        for tensor in model.reader.layouts[ENDS].tensors
        if "embed_tokens." in tensor.name
    )

    def forecast() -> Forecast:
        counts = source.expert_counts
        measured = counts is not None and counts.hits + counts.misses >= _LOOKUPS_MIN
        return plan_forecast(
            needs,
            source.residency,
            rates,
            has_host=has_host,
            token=TokenNeeds(
                experts=chosen, unread_bytes=0 if model.config.tied else embedding_bytes
            ),
            hit_rate=counts.hit_rate if counts is not None and measured else None,
        )

    return forecast
