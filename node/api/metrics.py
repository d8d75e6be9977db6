"""What the API did, in Prometheus' text format.

Names follow its conventions: a unit in each name, counters end in _total.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """One API's. Its registry is its own: a process may have two."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "potluck_api_requests_total", "Answered", ["route", "status"], registry=registry
        )
        self.open = Gauge("potluck_api_requests_open", "Being answered now", registry=registry)
        self.left = Counter(
            "potluck_api_disconnects_total", "Clients that left early", registry=registry
        )
        self.prompt_tokens = Counter(
            "potluck_api_prompt_tokens_total", "Read", ["model"], registry=registry
        )
        self.tokens = Counter("potluck_api_tokens_total", "Generated", ["model"], registry=registry)
        self.recoveries = Counter(
            "potluck_api_recoveries_total", "Hops that were lost and replaced", registry=registry
        )
        self.first_s = Histogram(
            "potluck_api_first_token_seconds",
            "From the whole request to the first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.next_s = Histogram(
            "potluck_api_next_token_seconds",
            "Between two tokens of an answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.peers = Gauge("potluck_api_peers", "Peers known to be there", registry=registry)

    def generated(self) -> float:
        """Tokens so far, of all models."""
        return sum(
            sample.value
            for family in self.tokens.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
