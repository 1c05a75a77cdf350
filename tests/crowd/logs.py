"""What a topic may have become of records that were written to it: compacted, as far as the broker has come."""

from collections.abc import Sequence

from streams.crowd.counts import StateRecord

Log = list[StateRecord]


def compacted(log: Sequence[StateRecord], upto: int, tombstones: bool) -> Log:
    """Return a log of which the first `upto` records are compacted: of each key the newest is left, where it stands.

    `tombstones`: those of the compacted part have outlived the topic's `delete.retention.ms` and are gone too.
    """
    head, tail = log[:upto], list(log[upto:])
    newest = {key: place for place, (key, _) in enumerate(head)}
    kept = [record for place, record in enumerate(head) if newest[record[0]] == place]
    return [record for record in kept if record[1] is not None or not tombstones] + tail
