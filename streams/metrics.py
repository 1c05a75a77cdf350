"""All metrics of the worker, in one list: kind, name, labels, unit and meaning. README's table is made from it.

Rules of this file: labels are names from the policy, lane names and reasons from closed lists: never anything out of
an event, a key or a consent, and never unbounded.
"""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["METRICS", "Metric", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its kind decides the Prometheus type."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric("counter", "celosia_events_total", ("source", "outcome", "reason"), "events by what became of them; each input counts once"),
    Metric("counter", "celosia_outputs_total", ("source", "topic"), "minimized events published, by output topic"),
    Metric("counter", "celosia_refusals_total", ("source", "purpose", "reason"), "why events did not serve a purpose"),
    Metric("gauge", "celosia_lane_state", ("lane", "state"), "1 for the state that a lane is in"),
    Metric("gauge", "celosia_lane_position", ("lane", "topic"), "committed offset: the next one that the lane will read"),
    Metric("gauge", "celosia_lane_lag", ("lane", "topic"), "records between the committed offset and the end of the topic"),
    Metric("histogram", "celosia_gate_wait_seconds", ("agent",), "wait at the gate of one batch, in seconds"),
    Metric("histogram", "celosia_transaction_seconds", ("agent",), "begin to commit of one transaction, in seconds"),
    Metric("histogram", "celosia_consent_to_receipt_seconds", (), "consent record written to receipt committed, in seconds"),
    Metric("counter", "celosia_receipts_total", ("lane",), "receipts committed"),
    Metric("gauge", "celosia_consents_known", ("partition",), "people whose consent record is held in memory"),
    Metric("counter", "celosia_consents_rejected_total", ("partition",), "consent records that were unreadable or misplaced"),
    Metric("gauge", "celosia_consents_blocked", ("partition",), "1 where a consent record with an unreadable key denies everyone"),
    Metric("counter", "celosia_lane_restarts_total", ("lane", "cause"), "starts of a lane after a failure or after being fenced"),
)  # fmt: skip
"""The list. A metric that is not here does not exist."""


class Metrics:
    """The Prometheus objects of the list, by name, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics = {metric.name: self._make(metric) for metric in METRICS}

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind == "counter":
            return Counter(metric.name, metric.meaning, metric.labels, registry=self.registry)
        if metric.kind == "gauge":
            return Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry)
        return Histogram(metric.name, metric.meaning, metric.labels, registry=self.registry, buckets=_SECONDS)

    def add(self, name: str, *labels: str, amount: float = 1) -> None:
        """Count something."""
        metric = self._metrics[name]
        assert isinstance(metric, Counter)
        metric.labels(*labels).inc(amount)

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge."""
        metric = self._metrics[name]
        assert isinstance(metric, Gauge)
        metric.labels(*labels).set(value)

    def observe(self, name: str, *labels: str, seconds: float) -> None:
        """Record a duration in seconds."""
        metric = self._metrics[name]
        assert isinstance(metric, Histogram)
        (metric.labels(*labels) if labels else metric).observe(seconds)

    def forget(self, name: str, *labels: str) -> None:
        """Stop showing a gauge: its lane is another worker's now."""
        metric = self._metrics[name]
        try:
            metric.remove(*labels)
        except KeyError:
            return
