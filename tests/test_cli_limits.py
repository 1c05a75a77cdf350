"""What the quick commands never load, and what no command ever says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import streams
from streams.keys import MasterKey
from tests.test_cli import RETAIL, ROOT, SHOP, celosia, consent, purchase, shop

__all__ = ["shop"]

TOO_HEAVY = {"faust", "mode", "aiokafka", "aiohttp", "pydantic_settings", "prometheus_client", "rich", "uvloop"}
FILTER = ["filter", "--policy", str(RETAIL), "--out", "out", "--key-file", "key"]


def in_a_process(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", str(SHOP), "--sample", "events.ndjson"],
        ["explain", "--policy", str(RETAIL), "--event", "event.json", "--consents", "consents.ndjson"],
        [*FILTER, "--events", "events.ndjson", "--consents", "consents.ndjson"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_quick_commands_load_nothing_heavy(shop: Path, arguments: list[str]) -> None:
    code = f"""
import sys
from streams.cli import main
main({arguments!r}, standalone_mode=False)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print("loaded:", *sorted(loaded & {TOO_HEAVY!r}))
"""
    assert in_a_process(code, shop).splitlines()[-1] == "loaded:"


def test_importing_streams_is_cheap_and_its_names_are_there(tmp_path: Path) -> None:
    code = "import sys, streams; print(sorted(name for name in sys.modules if name.startswith('streams')))"
    assert in_a_process(code, tmp_path) == "['streams']\n"
    for name in streams.__all__:
        assert getattr(streams, name).__module__.startswith("streams.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = getattr(streams, "nothing")  # noqa: B009 - there is no such name


def test_the_reading_order_names_every_module() -> None:
    told = set(re.findall(r"^    ([a-z]+)/?  ", str(streams.__doc__), re.MULTILINE))
    there = {path.stem for path in (ROOT / "streams").glob("[a-z]*.py")}
    folders = {path.parent.name for path in (ROOT / "streams").glob("*/__init__.py")}
    assert there | folders <= told


# What is never said


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of events and consents with a canary in every value, and in names that the policy does not name."""
    count = iter(range(100_000))

    def canary() -> str:
        return f"canary{next(count)}"

    def event() -> dict[str, Any]:
        below = {"stock_code": canary(), "quantity": canary(), canary(): canary(), "list": [canary(), {canary(): 1}]}
        return purchase(canary(), event_id=canary(), invoice=canary(), item=below, **{canary(): {canary(): canary()}})

    def document(value: dict[str, Any]) -> bytes:
        return json.dumps(value).encode() + b"\n"

    events = [event() for _ in range(20)] + [event() | {"type": canary()}, event() | {"occurred_at": canary()}]
    broken = [b'{"customer": "canary\n', b"canary\n", b'{"customer":"canary","customer":"canary1","type":"purchase"}\n']
    (tmp_path / "events.ndjson").write_bytes(b"".join([*map(document, events), *broken]))
    (tmp_path / "event.json").write_bytes(document(events[0]))
    consents = [
        consent(item["customer"], **{"service.orders": "identified", canary(): "identified"}) for item in events
    ]
    bad = [document({"subject": canary(), "version": canary()}), b'{"subject": "canary', b"\n"]
    (tmp_path / "consents.ndjson").write_bytes(b"".join([*map(document, consents), *bad]))
    MasterKey.create(tmp_path / "key")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", RETAIL, "--sample", "events.ndjson", "--strict"],
        ["check", SHOP, "--sample", "events.ndjson", "--strict"],
        ["explain", "--policy", RETAIL, "--event", "event.json", "--consents", "consents.ndjson"],
        ["explain", "--policy", RETAIL, "--event", "event.json", "--consent", "event.json"],
        ["explain", "--policy", RETAIL, "--event", "events.ndjson"],
        ["check", "events.ndjson"],
        [*FILTER, "--consents", "consents.ndjson", "--events", "events.ndjson"],
        [*FILTER, "--consents", "events.ndjson", "--events", "consents.ndjson"],
    ],
)
def test_no_canary_is_said(planted: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object]) -> None:
    monkeypatch.chdir(planted)
    result = celosia(*arguments)
    assert result.output
    assert "canary" not in result.output
    if (planted / "out").exists():
        assert b"canary" not in (planted / "out" / "quarantine.ndjson").read_bytes()
