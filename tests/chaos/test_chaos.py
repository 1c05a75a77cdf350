"""Workers, brokers and links are hurt, three minutes long; nothing is lost, doubled, out of order, stale or leaked.

`make chaos` does the same for as long as one likes (`tests.chaos.__main__`).
"""

import faulthandler
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streams import embedded
from streams.embedded import java_and_maven
from tests.chaos.__main__ import main
from tests.chaos.cluster import SETTINGS
from tests.chaos.run import Order, run
from tests.chaos.workers import PAUSES
from tests.checker import Violations
from tests.kafka.brokers import wait_until

ROOT = Path(__file__).parents[2]
NO_GATE = """
from streams.kafka.lane import Lane
async def no_gate(self, follower):
    return None
Lane._gate = no_gate
"""


@pytest.fixture(autouse=True)
def _java() -> None:
    if reason := java_and_maven():
        pytest.skip(f"three nodes need Java and Maven: {reason}")


@pytest.mark.timeout(600)
def test_every_promise_is_kept_while_everything_is_hurt() -> None:
    faulthandler.cancel_dump_traceback_later()  # It takes as long as other tests take only when they hang.
    seed = int(os.environ.get("CELOSIA_SEED") or random.randrange(1 << 32))
    order = Order(seconds=120.0, events=9_000, seed=seed, people=1_000, short=True)
    result = run(order)
    print(*result.done, *result.lines(), sep="\n")
    assert [what for what in order.wanted if not result.counts[what]] == []
    assert result.counts["SIGSTOPs of workers"] >= len(PAUSES)
    counts, power = result.report.counts, result.report.power
    for what in ("published", "suppressed", "quarantined", "receipts", "promises", "aborted"):
        assert counts[what] > 0, what
    for what in ("soon", "decisive", "promises_checked"):
        assert power[what] > 0, what


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_without_the_gate_the_same_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulthandler.cancel_dump_traceback_later()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Where the evidence goes.
    with pytest.raises(Violations) as broken:
        run(Order(seconds=60.0, events=9_000, seed=5, gates=("fast",), short=True, mutant=NO_GATE))
    # Consents that were not read yet are missing: what was allowed is lost, and receipts go back.
    assert broken.value.kinds & {"T1", "T2", "lost", "output", "receipt"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--sceonds=3"], "unrecognized arguments: --sceonds=3"),
        (["--seconds=soon"], "argument --seconds: 'soon' is not a number above 0"),
        (["--seconds=0"], "argument --seconds: '0' is not a number above 0"),
        (["--events=1e6"], "argument --events: '1e6' is not a whole number"),
        (["--seed=-1"], "argument --seed: '-1' is not a whole number"),
        (["--people=0"], "argument --people: nobody is left"),
    ],
)
def test_bad_option_gives_one_line(arguments: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capfd.readouterr() == ("", f"chaos: {line}\n")


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (0, "carrying the links: port {}: Address already in use; end its owner"),
        (1, "starting Apache Kafka 4.1.0 (3 nodes): port {}: Address already in use; end its owner or use another one"),
    ],
    ids=["of a link", "of a node"],
)
def test_port_that_is_taken_gives_one_line(
    end: int, line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    with socket.create_server(("127.0.0.1", 0)) as owner:
        taken = owner.getsockname()[1]

        def ports(count: int) -> list[int]:
            free = embedded._free_ports(count)
            free[end] = taken
            return free

        monkeypatch.setattr("tests.chaos.cluster._free_ports", ports)
        assert main(["--seconds=1"]) == 2
    assert capfd.readouterr() == ("", f"chaos: {line.format(taken)}\n")
    assert children() == before


def test_broker_that_does_not_start_gives_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "num.partitions", "banana")
    before = children()
    assert main(["--seconds=1"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("chaos: starting Apache Kafka 4.1.0 (3 nodes): it ended with code 1; see its log below (")
    assert err.count("\n") == 1
    log = Path(err.rstrip(")\n").rpartition("(")[2])
    assert "banana" in log.read_text()
    log.unlink()
    assert children() == before


def test_run_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        runner = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", "--seconds=600", "--seed=1"],
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
    with runner:
        try:
            wait_until(lambda: " workers, " in log.read_text(), "the run goes on", 120)
            mine = children(runner.pid)
            assert len(mine) > 6, "nodes, workers, their guards and links"
        finally:
            runner.send_signal(signal.SIGTERM)
            runner.wait(180)
    assert runner.returncode == 130
    assert log.read_text().splitlines()[-1] == "chaos: ended before its time; seed 1"
    assert not mine & running(), "something was left running"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def children(parent: int | None = None) -> set[int]:
    """The processes that a process has started and that run."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()]
    asking = {int(pid) for pid, of, state in rows if state[0] != "Z" and int(of) == (parent or os.getpid())}
    return asking & running()


def running() -> set[int]:
    """All processes that run."""
    table = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid, state in map(str.split, table.splitlines()) if state[0] != "Z"}
