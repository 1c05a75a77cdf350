"""Metrics: one list, complete, without labels that could be a person."""

import re

import pytest

from streams.metrics import METRICS, Metric, Metrics

LABELS = {"source", "outcome", "reason", "topic", "purpose", "lane", "state", "cause", "agent", "partition"}


def test_names_are_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"celosia_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_seconds") == (metric.kind == "histogram"), metric.name


def test_each_metric_says_what_it_means() -> None:
    for metric in METRICS:
        assert len(metric.meaning) > 10, metric.name
        assert metric.kind != "histogram" or "in seconds" in metric.meaning, metric.name


def test_no_label_is_anything_out_of_an_event_a_key_or_a_consent() -> None:
    """A new label must be added here: by somebody who has thought of whether its values are names of ours, and few."""
    assert {label for metric in METRICS for label in metric.labels} == LABELS


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_metric_of_the_list_is_there_and_moves(metric: Metric) -> None:
    metrics = Metrics()
    labels = {label: f"{label}-1" for label in metric.labels}
    if metric.kind == "counter":
        metrics.add(metric.name, *labels.values())
        metrics.add(metric.name, *labels.values(), amount=2)
        assert metrics.registry.get_sample_value(metric.name, labels) == 3
    elif metric.kind == "gauge":
        metrics.set(metric.name, *labels.values(), value=7)
        metrics.set(metric.name, *labels.values(), value=5)
        assert metrics.registry.get_sample_value(metric.name, labels) == 5
    else:
        metrics.observe(metric.name, *labels.values(), seconds=0.02)
        assert metrics.registry.get_sample_value(f"{metric.name}_count", labels) == 1
        assert metrics.registry.get_sample_value(f"{metric.name}_sum", labels) == 0.02


def test_durations_are_told_from_a_millisecond_to_a_minute() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.25, 59.0, 61.0):
        metrics.observe("celosia_gate_wait_seconds", "minimize", seconds=seconds)
    counted = {
        edge: metrics.registry.get_sample_value("celosia_gate_wait_seconds_bucket", {"agent": "minimize", "le": edge})
        for edge in ("0.001", "0.25", "60.0", "+Inf")
    }
    assert counted == {"0.001": 1, "0.25": 2, "60.0": 3, "+Inf": 4}


def test_a_lane_that_went_elsewhere_is_forgotten() -> None:
    metrics = Metrics()
    for lane, lag in (("minimize-0", 5), ("minimize-1", 6)):
        metrics.set("celosia_lane_lag", lane, "raw", value=lag)
    metrics.forget("celosia_lane_lag", "minimize-0", "raw")
    metrics.forget("celosia_lane_lag", "minimize-7", "raw")
    left = [
        metrics.registry.get_sample_value("celosia_lane_lag", {"lane": f"minimize-{n}", "topic": "raw"}) for n in (0, 1)
    ]
    assert left == [None, 6]


def test_two_workers_in_one_process_count_for_themselves() -> None:
    one, two = Metrics(), Metrics()
    one.add("celosia_receipts_total", "minimize-0")
    assert one.registry.get_sample_value("celosia_receipts_total", {"lane": "minimize-0"}) == 1
    assert two.registry.get_sample_value("celosia_receipts_total", {"lane": "minimize-0"}) is None


@pytest.mark.parametrize("name", ["celosia_made_up_total", "celosia_lane_lag"])
def test_what_is_not_on_the_list_as_a_counter_cannot_be_counted(name: str) -> None:
    with pytest.raises(KeyError):
        Metrics().add(name, "a", "b")


def test_a_label_more_or_less_than_the_list_has_is_refused() -> None:
    for labels in ((), ("a", "b")):
        with pytest.raises(ValueError, match="label"):
            Metrics().add("celosia_receipts_total", *labels)
