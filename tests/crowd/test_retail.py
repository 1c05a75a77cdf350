"""Real purchases, country by day: what is counted and told is what pandas comes to.

The pandas side shares nothing with the program but the data: it groups, counts distinct customers, and finds the cells
that the guard takes by a running sum over the sorted cells of a day.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from streams.crowd.rule import UNIT, CrowdRule, Sum
from tests.crowd.deployment import Deployment, cell_of

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "streams" / "data" / "online_retail_sample.ndjson.gz"
DATA = Path(os.environ.get("CELOSIA_DATA") or ROOT.parent / "shared" / "data")
SOURCE = DATA / "retail" / "online_retail.dev.csv.gz"
HOUR, DAY = 3_600_000, 86_400_000
K = 5
MOST_QUANTITY, MOST_PRICE = 500, 25
Cells = dict[tuple[int, str], tuple[int, int, int, int]]
"""By day (ms) and country: customers, purchases, and their quantities and prices in millionths."""

RULE = CrowdRule(
    "stock",
    K,
    window=DAY,
    late=HOUR,
    by=("country",),
    sums=(Sum("quantity", 0, MOST_QUANTITY * UNIT), Sum("unit_price", -UNIT, MOST_PRICE * UNIT)),
    # In this data nobody buys in two countries in a day; pandas does not know of the bound, and would show it.
    most_per_person=1,
)


def of_the_package() -> pd.DataFrame:
    """Return the purchases of the two days in the package that have a customer, as they came."""
    events = [json.loads(line) for line in gzip.decompress(SAMPLE.read_bytes()).splitlines()]
    purchases = pd.DataFrame(
        {
            "customer": [event["customer"] for event in events],
            "country": [event["country"] for event in events],
            "at": pd.to_datetime([event["occurred_at"] for event in events], utc=True),
            "quantity": [event["item"]["quantity"] for event in events],
            "price": [event["item"]["unit_price"] for event in events],
        }
    )
    return purchases.dropna(subset=["customer"])


def of_the_shop() -> pd.DataFrame:
    """Return all purchases that have a customer, as they came."""
    if not SOURCE.exists():
        pytest.skip(f"no {SOURCE.name}: CELOSIA_DATA names the folder it is in")
    lines = pd.read_csv(SOURCE, dtype={"CustomerID": str}, parse_dates=["InvoiceDate"])
    purchases = pd.DataFrame(
        {
            "customer": lines["CustomerID"],
            "country": lines["Country"],
            "at": lines["InvoiceDate"].dt.tz_localize("UTC"),
            "quantity": lines["Quantity"],
            "price": lines["UnitPrice"],
        }
    )
    return purchases.dropna(subset=["customer"])


def by_pandas(purchases: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each day and country: customers, events, quantity and price in millionths."""
    millionths = purchases.assign(
        day=purchases["at"].dt.normalize(),
        quantity=purchases["quantity"] * UNIT,
        price=(purchases["price"] * UNIT).round().astype("int64"),
    )
    of_each = millionths.groupby(["day", "country", "customer"], as_index=False).agg(
        events=("quantity", "size"), quantity=("quantity", "sum"), price=("price", "sum")
    )
    of_each["quantity"] = of_each["quantity"].clip(0, MOST_QUANTITY * UNIT)
    of_each["price"] = of_each["price"].clip(-UNIT, MOST_PRICE * UNIT)
    return of_each.groupby(["day", "country"], as_index=False).agg(
        people=("customer", "nunique"), events=("events", "sum"), quantity=("quantity", "sum"), price=("price", "sum")
    )


def guarded_by_pandas(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are told when days are totals that somebody knows: the smallest cells are missing."""
    order = cells.sort_values(["day", "people", "country"])
    days = order.groupby("day")
    place, gone_before = days.cumcount(), days["people"].cumsum() - order["people"]
    small = (order["people"] < K).groupby(order["day"]).transform("any")
    # A cell is missing if it is small, or if those before it are too few cells or too few people to hide each other.
    return order[(order["people"] >= K) & ~(small & ((place < 2) | (gone_before < K)))]


def as_cells(rows: pd.DataFrame) -> Cells:
    days = (rows["day"] - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(milliseconds=1)
    columns = (rows[name] for name in ("people", "events", "quantity", "price"))
    told = zip(*(map(int, column) for column in columns), strict=True)
    return dict(zip(zip(map(int, days), rows["country"], strict=True), told, strict=True))


def play(purchases: pd.DataFrame) -> Deployment:
    """Send all purchases through a deployment of three partitions, and restart it now and then."""
    deployment = Deployment(RULE, partitions=3)
    deployment.since = dict.fromkeys(purchases["customer"], 0)
    times = ((purchases["at"] - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(milliseconds=1)).tolist()
    columns = (purchases[name].tolist() for name in ("customer", "country", "quantity", "price"))
    hour = times[0] // HOUR
    for at, customer, country, quantity, price in zip(times, *columns, strict=True):
        # Time passes at night and at weekends too: a step of more than `hold` would drop what was before it.
        while hour < at // HOUR:
            hour += 1
            deployment.pass_time(hour * HOUR)
            if hour % 100 == 0:
                deployment.restart()
        deployment.send(customer, cell_of(country), [quantity * UNIT, round(price * UNIT)], at)
    for after in range(48):
        deployment.pass_time((hour + after) * HOUR)
    return deployment


@pytest.mark.parametrize("purchases_of", [of_the_package, of_the_shop])
def test_country_by_day_is_what_pandas_comes_to(purchases_of: Callable[[], pd.DataFrame]) -> None:
    purchases = purchases_of()
    deployment, cells = play(purchases), by_pandas(purchases)
    assert len(deployment.closed) == len(deployment.released) == cells["day"].nunique()

    everything = {
        (window, json.loads(cell)[0]): (part.people, part.events, *part.sums)
        for window, parts in deployment.closed.items()
        for cell, part in (parts or {}).items()
    }
    assert everything == as_cells(cells)
    threshold = {at: told for at, told in everything.items() if told[0] >= K}
    assert threshold == as_cells(cells[cells["people"] >= K])

    told = {
        (window, json.loads(cell)[0]): (part.people, part.events, *part.sums)
        for window, released in deployment.released.items()
        for cell, part in released.cells.items()
    }
    assert told == as_cells(guarded_by_pandas(cells))
    assert 0 < len(told) < len(threshold) < len(everything), "the guard had something to do"
    missing = cells.groupby("day").size() - guarded_by_pandas(cells).groupby("day").size().reindex(
        cells["day"].unique(), fill_value=0
    )
    said = [released.suppressed_at_least for _, released in sorted(deployment.released.items())]
    assert said == [count // K * K for count in missing.sort_index()]
