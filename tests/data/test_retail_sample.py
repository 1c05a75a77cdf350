"""The sample in the package is what its README says, and can be made again from the source."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.make_retail_sample import sample

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "streams" / "data" / "online_retail_sample.ndjson.gz"
DATA = Path(os.environ.get("CELOSIA_DATA") or ROOT.parent / "shared" / "data")
SOURCE = DATA / "retail" / "online_retail.dev.csv.gz"


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(SAMPLE.read_bytes()).splitlines()]


def test_the_sample_is_two_days_of_a_running_shop(events: list[dict[str, Any]]) -> None:
    assert len(events) == 5217
    assert {event["occurred_at"][:10] for event in events} == {"2010-12-01", "2010-12-02"}
    assert [event["occurred_at"] for event in events] == sorted(event["occurred_at"] for event in events)


def test_the_sample_holds_customers_strangers_and_cancellations(events: list[dict[str, Any]]) -> None:
    assert len({event["customer"] for event in events} - {None}) == 206
    assert sum(event["customer"] is None for event in events) == 1205
    assert Counter(event["type"] for event in events) == {"purchase": 5147, "cancellation": 70}


def test_every_event_has_its_own_id(events: list[dict[str, Any]]) -> None:
    assert len({event["event_id"] for event in events}) == len(events)


def test_the_file_carries_no_time_and_no_name() -> None:
    header = SAMPLE.read_bytes()[:8]
    assert (header[3], header[4:]) == (0, bytes(4))  # RFC 1952: FLG, MTIME


@pytest.mark.skipif(not SOURCE.exists(), reason=f"no {SOURCE.name}: CELOSIA_DATA names the folder it is in")
def test_the_sample_can_be_made_again_from_the_source() -> None:
    # The content byte for byte; the compressed form may differ between versions of zlib.
    assert gzip.decompress(SAMPLE.read_bytes()) == sample(SOURCE)
