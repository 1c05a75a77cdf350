"""Make the events of the demo from the UCI Online Retail data set.

    python tests/data/make_retail_sample.py online_retail.csv.gz > streams/data/online_retail_sample.ndjson.gz

The first two days of the shop, whole: every line becomes one event, in the order of the file. Nothing is left
out, repaired or merged. Equal lines are separate events: the shop booked them so.
"""

import csv
import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Winter days on purpose: the data set writes the time of the shop, which then equals UTC.
DAYS = ("2010-12-01", "2010-12-02")


def events(lines: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Give one event for each line of the chosen days, numbered within its invoice."""
    lines_of_invoice: Counter[str] = Counter()
    for line in lines:
        day, _, time = line["InvoiceDate"].partition(" ")
        if day not in DAYS:
            continue
        invoice = line["InvoiceNo"]
        lines_of_invoice[invoice] += 1
        yield {
            "event_id": f"{invoice}-{lines_of_invoice[invoice]}",
            "type": "cancellation" if invoice.startswith("C") else "purchase",
            "occurred_at": f"{day}T{time}Z",
            "customer": line["CustomerID"].removesuffix(".0") or None,
            "invoice": invoice,
            "country": line["Country"],
            "item": {
                "stock_code": line["StockCode"],
                "description": line["Description"],
                "quantity": int(line["Quantity"]),
                "unit_price": float(line["UnitPrice"]),
            },
        }


def sample(source: Path) -> bytes:
    """Give the events of a CSV file as newline-delimited JSON."""
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        return b"".join(json.dumps(event).encode() + b"\n" for event in events(csv.DictReader(file)))


def compressed(content: bytes) -> bytes:
    """Compress without the time and the file name, so that equal content gives equal files."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(compressed(sample(Path(sys.argv[1]))))
