"""Real purchases, country by day: what is counted and told is what SQL comes to.

The SQL side shares nothing with the program but the data: it groups, counts distinct customers, and finds the cells
that the guard takes by a running sum over the sorted cells of a day.
"""

import csv
import gzip
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from streams.crowd.rule import UNIT, CrowdRule, Sum
from tests.crowd.deployment import Deployment, cell_of

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "streams" / "data" / "online_retail_sample.ndjson.gz"
DATA = Path(os.environ.get("CELOSIA_DATA") or ROOT.parent / "shared" / "data")
SOURCE = DATA / "retail" / "online_retail.dev.csv.gz"
HOUR, DAY = 3_600_000, 86_400_000
K = 5
Cells = dict[tuple[int, str], tuple[int, int, int, int]]
"""By day (ms) and country: customers, purchases, and their quantities and prices in millionths."""

RULE = CrowdRule(
    "stock",
    K,
    window=DAY,
    late=HOUR,
    by=("country",),
    sums=(Sum("quantity", 0, 500 * UNIT), Sum("unit_price", -UNIT, 25 * UNIT)),
    # In this data nobody buys in two countries in a day; SQL does not know of the bound, and would show it.
    most_per_person=1,
)

COUNTED = """
    CREATE TABLE cells AS
    WITH of_each AS (
        SELECT CAST(strftime('%s', date(at)) AS INTEGER) * 1000 AS day, country, customer, COUNT(*) AS events,
               MIN(MAX(SUM(quantity), 0), 500) * 1000000 AS quantity,
               MIN(MAX(SUM(CAST(ROUND(price * 1000000) AS INTEGER)), -1000000), 25000000) AS price
        FROM purchases GROUP BY day, country, customer
    )
    SELECT day, country, COUNT(DISTINCT customer) AS people, SUM(events) AS events, SUM(quantity) AS quantity,
           SUM(price) AS price
    FROM of_each GROUP BY day, country
"""
GUARDED = """
    CREATE TABLE guarded AS
    WITH sorted AS (
        SELECT *, MIN(people) OVER (PARTITION BY day) AS smallest,
               ROW_NUMBER() OVER before AS place, SUM(people) OVER before - people AS gone_before
        FROM cells WINDOW before AS (PARTITION BY day ORDER BY people, country ROWS UNBOUNDED PRECEDING)
    )
    -- A cell is missing if it is small, or if those before it are too few cells or too few people to hide each other.
    SELECT *, people >= 5 AND (smallest >= 5 OR (place > 2 AND gone_before >= 5)) AS told FROM sorted
"""
# Of the cells that are missing, the largest aside: are they of too few people, nothing is said.
SAID = """
    SELECT day, CASE WHEN TOTAL(people) FILTER (WHERE NOT told) - MAX(people) FILTER (WHERE NOT told) >= 5
                     THEN COUNT(*) FILTER (WHERE NOT told) / 5 * 5 ELSE 0 END
    FROM guarded GROUP BY day
"""
EVERYTHING = "SELECT day, country, people, events, quantity, price FROM guarded"
THRESHOLD = EVERYTHING + " WHERE people >= 5"
TOLD = EVERYTHING + " WHERE told"


class Purchase(NamedTuple):
    """A line of an invoice that has a customer, as it came; `at` is ISO 8601, in UTC."""

    customer: str
    country: str
    at: str
    quantity: int
    price: float


def of_the_package() -> Iterator[Purchase]:
    """Yield the purchases of the two days in the package."""
    for line in gzip.decompress(SAMPLE.read_bytes()).splitlines():
        event = json.loads(line)
        if event["customer"]:
            item = event["item"]
            yield Purchase(
                event["customer"], event["country"], event["occurred_at"], item["quantity"], item["unit_price"]
            )


def of_the_shop() -> Iterator[Purchase]:
    """Yield all purchases."""
    if not SOURCE.exists():
        pytest.skip(f"no {SOURCE.name}: CELOSIA_DATA names the folder it is in")
    for line in csv.DictReader(io.StringIO(gzip.decompress(SOURCE.read_bytes()).decode(), newline="")):
        if line["CustomerID"]:
            quantity, price = int(line["Quantity"]), float(line["UnitPrice"])
            yield Purchase(line["CustomerID"], line["Country"], line["InvoiceDate"], quantity, price)


def by_sql(purchases: list[Purchase]) -> sqlite3.Connection:
    """Return a database with the cells of each day, and what of them is told where somebody knows totals of days."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE purchases (customer TEXT, country TEXT, at TEXT, quantity INTEGER, price REAL)")
    database.executemany("INSERT INTO purchases VALUES (?, ?, ?, ?, ?)", purchases)
    database.execute(COUNTED)
    database.execute(GUARDED)
    return database


def as_cells(rows: sqlite3.Cursor) -> Cells:
    return {(day, country): (people, *rest) for day, country, people, *rest in rows}


def play(purchases: list[Purchase]) -> Deployment:
    """Send all purchases through a deployment of three partitions, and restart it now and then."""
    deployment = Deployment(RULE, partitions=3)
    deployment.since = dict.fromkeys((purchase.customer for purchase in purchases), 0)
    hour = _ms(purchases[0].at) // HOUR
    for customer, country, time, quantity, price in purchases:
        at = _ms(time)
        # Time passes at night and at weekends too.
        while hour < at // HOUR:
            hour += 1
            deployment.pass_time(hour * HOUR)
            if hour % 100 == 0:
                deployment.restart()
        deployment.send(customer, cell_of(country), [quantity * UNIT, round(price * UNIT)], at)
    for after in range(48):
        deployment.pass_time((hour + after) * HOUR)
    return deployment


def _ms(time: str) -> int:
    return int(datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("purchases_of", [of_the_package, of_the_shop])
def test_country_by_day_is_what_sql_comes_to(purchases_of: Callable[[], Iterator[Purchase]]) -> None:
    purchases = list(purchases_of())
    deployment, sql = play(purchases), by_sql(purchases)
    (days,) = sql.execute("SELECT COUNT(DISTINCT date(at)) FROM purchases").fetchone()
    assert len(deployment.closed) == len(deployment.released) == days

    everything = {
        (window, json.loads(cell)[0]): (part.people, part.events, *part.sums)
        for window, parts in deployment.closed.items()
        for cell, part in (parts or {}).items()
    }
    assert everything == as_cells(sql.execute(EVERYTHING))
    threshold = {at: told for at, told in everything.items() if told[0] >= K}
    assert threshold == as_cells(sql.execute(THRESHOLD))

    told = {
        (window, json.loads(cell)[0]): (part.people, part.events, *part.sums)
        for window, released in deployment.released.items()
        for cell, part in released.cells.items()
    }
    assert told == as_cells(sql.execute(TOLD))
    assert 0 < len(told) < len(threshold) < len(everything), "the guard had something to do"
    said = {window: released.suppressed_at_least for window, released in deployment.released.items()}
    assert said == dict(sql.execute(SAID).fetchall())
    sql.close()
