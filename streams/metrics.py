"""All metrics of the worker, in one list: kind, name, labels, unit and meaning. README's table is made from it.

Rules of this file: labels are names from the policy, lane names and reasons from closed lists: never anything out of
an event, a key or a consent, and never unbounded.
"""

import contextlib
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["METRICS", "Metric", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metric(NamedTuple):
    """One metric: its kind decides the Prometheus type."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric(
        "celosia_events_total",
        "counter",
        ("source", "outcome", "reason"),
        "events by what became of them; each input counts once (an event on its way through re-keying as `rekeyed`)",
    ),
    Metric("celosia_outputs_total", "counter", ("source", "topic"), "minimized events published, by output topic"),
    Metric("celosia_refusals_total", "counter", ("source", "purpose", "reason"), "why events did not serve a purpose"),
    Metric("celosia_crowd_events_total", "counter", ("purpose", "outcome"), "events that met a crowd, by what it did"),
    Metric("celosia_crowd_windows_total", "counter", ("purpose", "outcome"), "windows released, or dropped for delay"),
    Metric("celosia_crowd_cells_total", "counter", ("purpose", "outcome"), "cells of released windows, by fate"),
    Metric("celosia_lane_state", "gauge", ("lane", "state"), "1 for the state that a lane is in"),
    Metric("celosia_lane_position", "gauge", ("lane", "topic"), "committed offset: the next one the lane will read"),
    Metric("celosia_lane_lag", "gauge", ("lane", "topic"), "records from the committed offset to the end of the topic"),
    Metric("celosia_lane_restarts_total", "counter", ("lane", "cause"), "starts after a failure or after being fenced"),
    Metric("celosia_gate_wait_seconds", "histogram", ("agent",), "wait of one batch at the gate, in seconds"),
    Metric("celosia_transaction_seconds", "histogram", ("agent",), "begin to commit of one transaction, in seconds"),
    Metric(
        "celosia_consent_to_receipt_seconds",
        "histogram",
        (),
        "from the time stamp of a consent record to the commit of its receipt, in seconds",
    ),
    Metric("celosia_receipts_total", "counter", ("lane",), "receipts committed"),
    Metric("celosia_consents_known", "gauge", ("partition",), "people whose consent record is held in memory"),
    Metric("celosia_consents_rejected_total", "counter", ("partition",), "consent records unreadable or misplaced"),
    Metric("celosia_consents_blocked", "gauge", ("partition",), "1 where an unreadable consent key denies everyone"),
)
"""The list. A metric that is not here does not exist."""


class Metrics:
    """The Prometheus objects of the list, by name, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for name, kind, labels, meaning in METRICS:
            if kind == "counter":
                self._counters[name] = Counter(name, meaning, labels, registry=self.registry)
            elif kind == "gauge":
                self._gauges[name] = Gauge(name, meaning, labels, registry=self.registry)
            else:
                self._histograms[name] = Histogram(name, meaning, labels, registry=self.registry, buckets=_SECONDS)

    def add(self, name: str, *labels: str, amount: float = 1) -> None:
        """Count something."""
        self._counters[name].labels(*labels).inc(amount)

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name].labels(*labels).set(value)

    def observe(self, name: str, *labels: str, seconds: float) -> None:
        """Record a duration in seconds."""
        histogram = self._histograms[name]
        (histogram.labels(*labels) if labels else histogram).observe(seconds)

    def forget(self, name: str, *labels: str) -> None:
        """Stop showing a gauge: its lane is another worker's now."""
        with contextlib.suppress(KeyError):
            self._gauges[name].remove(*labels)
