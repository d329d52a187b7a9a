"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from sllm.gateway.asking import Ending
    from sllm.gateway.host import ModelHost

_LOAD_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FIRST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class GatewayMetrics:
    """What the server counts. What runs now is read when scraped."""

    def __init__(self) -> None:
        """Register everything under names that start with gdsllm_."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gdsllm_requests",
            "Requests that were answered, by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "gdsllm_tokens",
            "Tokens of prompts, of them those that needed no computing, and of answers.",
            ["kind"],
            registry=self.registry,
        )
        self.load_seconds = Histogram(
            "gdsllm_load_seconds",
            "Time that loading a model took.",
            buckets=_LOAD_BUCKETS_S,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "gdsllm_first_token_seconds",
            "Time from a request's begin in its engine to its first token.",
            buckets=_FIRST_BUCKETS_S,
            registry=self.registry,
        )
        for kind in ("prompt", "cached", "answer"):
            self.tokens.labels(kind)

    def watch(self, host: ModelHost) -> None:
        """Read what a host's models do now whenever somebody asks."""

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"gdsllm_{name}", text, registry=self.registry)

        gauge("models", "Models that are loaded.").set_function(lambda: len(host.states()))
        gauge("requests_open", "Requests that have a model, or wait for one.").set_function(
            lambda: host.users
        )
        gauge("requests_running", "Requests that engines compute.").set_function(
            lambda: sum(state.running for state in host.states())
        )
        gauge("requests_waiting", "Requests that wait in engines.").set_function(
            lambda: sum(state.waiting for state in host.states())
        )
        gauge("tokens_per_second", "Tokens that all engines compute a second.").set_function(
            lambda: sum(state.tokens_per_s for state in host.states())
        )
        gauge("weight_bytes", "Bytes of the weights of loaded models.").set_function(
            lambda: sum(state.weight_bytes for state in host.states())
        )

    def on_end(self, ending: Ending) -> None:
        """Count an answer."""
        self.tokens.labels("prompt").inc(len(ending.prompt))
        self.tokens.labels("cached").inc(ending.cached)
        self.tokens.labels("answer").inc(len(ending.answer))
        self.first_token_seconds.observe(ending.prompt_s)
