"""What fuzzing has found: inputs that were handled against a rule, and stay here as tests.

While one is not mended, its kind of failure does not end a fuzzing run, so that others can be found behind it.
"""

from typing import NamedTuple

from aiokafka.errors import CorruptRecordException

from tests.kafka.batches import Entry, batch_of, legacy_of

__all__ = ["FOUND", "Found", "is_known"]


class Found(NamedTuple):
    """An input for a target, what it raised, and what is wrong. `mended`: it is a test like any other."""

    target: str
    data: bytes
    raised: type[BaseException]
    what: str
    mended: bool = False


_TWO = [Entry(b"k", b"v", 1_780_000_000_000, [("h", None)]), Entry(None, b"w", 0)]

FOUND = [
    Found(
        "survey", b'{"product":"\xff"}', UnicodeDecodeError, "a sample with invalid UTF-8 in a name or a field", True
    ),
    Found("batches", legacy_of(_TWO, 1) + batch_of(_TWO, 2), SystemError, "magic 2 behind magic 1 in one answer", True),
    Found("batches", legacy_of(_TWO[:1], 0), TypeError, "a record of magic 0, which has no time", True),
    Found("batches", batch_of(_TWO, -9) + batch_of(_TWO, -2), LookupError, "offsets of a batch that go back", True),
    Found("batches", bytes(99), CorruptRecordException, "a batch that is shorter than any", True),
    Found(
        "consents",
        b'{"subject":"ana","version":1,"purposes":{"ads":{"rung":"crowd","since":"0001-01-01T00:00:00+14:00"}}}',
        OverflowError,
        "a time of a consent that is before the year 1 in UTC cannot be written again",
        True,
    ),
]


def is_known(target: str, error: BaseException) -> bool:
    """Tell whether a failure is one that was found and is not mended."""
    return any(found.target == target and type(error) is found.raised and not found.mended for found in FOUND)
