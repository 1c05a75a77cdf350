"""Published data sets that are k-anonymous, each row a person: their quasi-identifiers make cells of the known k."""

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.crowd.counts import Counts
from streams.crowd.release import release
from streams.crowd.rule import LEAST_K, CrowdRule
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey

DATA = Path(os.environ.get("CELOSIA_DATA") or Path(__file__).parents[3] / "shared" / "data")
FOLDER = DATA / "vectors" / "k_anonymity"


SETS = ["adult_anonymized_10.csv.gz", "drugs_k5.csv", "StudentsMath_Score_k7.csv", "stroke_k10.csv"]


def expected_of(file: str) -> dict[str, Any]:
    if not FOLDER.exists():
        pytest.skip(f"no {FOLDER.name}: CELOSIA_DATA names the folder that it is in")
    [expected] = [one for one in json.loads((FOLDER / "expected.json").read_text()) if one["file"] == file]
    return dict(expected)


def counted(rule: CrowdRule, rows: list[dict[str, str]]) -> dict[Cell, Part]:
    counts = Counts([rule], MasterKey(bytes(32)))
    for number, row in enumerate(rows):
        cell = msgspec.json.encode([row[name] for name in rule.by])
        counts.add(rule.purpose, b"row-%d" % number, cell, [], 0)
    [(_, cells)] = counts.close(rule.purpose, 0, lambda _subject, _earliest: True)
    assert cells is not None
    return dict(cells)


def rows_of(file: Path) -> list[dict[str, str]]:
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("file", SETS)
def test_a_published_set_has_its_known_k(file: str) -> None:
    expected = expected_of(file)
    rows, k = rows_of(FOLDER / file), expected["k"]
    rule = CrowdRule("stock", max(k, LEAST_K), window=100, late=0, by=tuple(expected["quasi_identifiers"]))
    cells = counted(rule, rows)
    assert len(cells) == expected["classes"]
    assert sum(part.people for part in cells.values()) == expected["rows"] == len(rows)
    assert min(part.people for part in cells.values()) == k
    if k >= LEAST_K:
        assert set(release(rule, cells).cells) == set(cells)
    higher = CrowdRule("stock", max(k + 1, LEAST_K), window=100, late=0, by=rule.by)
    assert set(release(higher, cells).cells) < set(cells)
