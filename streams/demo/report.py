"""What the demo says at the end: the sums, and whether they agree. One object, told to people and to machines.

Rules of this file: nothing is assumed. What went in is what the broker acknowledged, what came out was read from the
topics, and the worker's own count (its metrics) must say the same.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from streams.demo.audit import Audit, Change
from streams.metrics import Metrics

__all__ = ["ChangeReport", "Check", "Report", "Totals", "report", "totals"]


class Totals(NamedTuple):
    """What the worker has counted: events by outcome and by reason, outputs by topic; and how far its lanes are."""

    outcomes: Counter[str]
    reasons: Counter[tuple[str, str]]
    outputs: Counter[str]
    positions: dict[int, int]


def totals(metrics: Metrics) -> Totals:
    """Read the worker's metrics, the same that Prometheus gets."""
    found = Totals(Counter(), Counter(), Counter(), {})
    for family in metrics.registry.collect():
        for name, labels, value, *_rest in family.samples:
            if name == "celosia_events_total":
                found.outcomes[labels["outcome"]] += int(value)
                if labels["reason"]:
                    found.reasons[labels["outcome"], labels["reason"]] += int(value)
            elif name == "celosia_outputs_total":
                found.outputs[labels["topic"]] += int(value)
            elif name == "celosia_lane_position":
                found.positions[int(labels["lane"].rpartition("-")[2])] = int(value)
    return found


class Check(msgspec.Struct):
    """One thing that must hold, and what was found."""

    claim: str
    holds: bool
    found: str


class ChangeReport(msgspec.Struct):
    """A change of consent and what followed it; see `streams.demo.audit.Change`."""

    person: str
    act: str
    allowed: dict[str, str]
    written: str
    receipt: str | None
    receipt_ms: int | None
    events_after_receipt: int
    outputs_after_receipt: int
    too_much: int


class Report(msgspec.Struct):
    """The demo in numbers. In plain mode its last line, as JSON."""

    broker: str
    guarantee: str
    seconds: float
    sent: int
    published: int
    suppressed: int
    quarantined: int
    reasons: dict[str, dict[str, int]]
    """by outcome"""
    outputs: dict[str, int]
    """by purpose"""
    changes: list[ChangeReport]
    checks: list[Check]
    ok: bool


def report(audit: Audit, counted: Totals, *, broker: str, exactly_once: bool, seconds: float, drained: bool) -> Report:
    """Hold everything against everything else. `drained`: all that was sent is committed, and its outputs were read."""
    checks = [*_sums(audit, counted, drained), *_promises(audit, exactly_once)]
    return Report(
        broker=broker,
        guarantee="exactly once" if exactly_once else "at least once",
        seconds=round(seconds, 1),
        sent=audit.sent_count,
        published=counted.outcomes["published"],
        suppressed=counted.outcomes["suppressed"],
        quarantined=counted.outcomes["quarantined"],
        reasons={
            outcome: {reason: count for (of, reason), count in counted.reasons.most_common() if of == outcome}
            for outcome in ("suppressed", "quarantined")
        },
        outputs=dict(audit.outputs),
        changes=[_change(change) for change in audit.changes.values()],
        checks=checks,
        ok=all(check.holds for check in checks),
    )


def _sums(audit: Audit, counted: Totals, drained: bool) -> Iterator[Check]:
    yield Check("all that was acknowledged is committed", drained, f"{audit.sent_count} events")
    parts = [counted.outcomes[kind] for kind in ("published", "suppressed", "quarantined")]
    found = f"{audit.sent_count} = {' + '.join(map(str, parts))}"
    yield Check("in = published + suppressed + quarantined", audit.sent_count == sum(parts), found)
    read, own = (audit.published, audit.quarantined), (counted.outcomes["published"], counted.outcomes["quarantined"])
    yield Check(
        "the topics hold what the worker has counted",
        read == own and audit.outputs_by_topic() == counted.outputs,
        f"{audit.outputs.total()} outputs, {audit.again} more than once",
    )
    yield Check(
        "quarantined is what was broken on purpose", audit.quarantined == audit.broken, f"{audit.broken} broken"
    )


def _promises(audit: Audit, exactly_once: bool) -> Iterator[Check]:
    unexplained = audit.unexplained + audit.pending
    yield Check("every output leads back to its event", unexplained == 0, f"{unexplained} do not")
    if exactly_once:
        yield Check("nothing was published twice", audit.again == 0, f"{audit.again}")
    found = f"{audit.stale} older, {audit.too_much} beyond"
    yield Check("every output is within the newest consent", audit.stale + audit.too_much == 0, found)
    events, after = audit.after_withdrawals()
    yield Check(
        f"events after receipt published for the withdrawn purpose: {after}",
        after == 0 and all(change.too_much == 0 and change.receipt is not None for change in audit.changes.values()),
        f"of {events}",
    )


def _change(change: Change) -> ChangeReport:
    return ChangeReport(
        person=change.person,
        act=change.act,
        allowed=dict(change.allowed),
        written=str(change.place),
        receipt=None if change.receipt is None else str(change.receipt),
        receipt_ms=change.receipt_ms,
        events_after_receipt=change.events,
        outputs_after_receipt=change.outputs,
        too_much=change.too_much,
    )
