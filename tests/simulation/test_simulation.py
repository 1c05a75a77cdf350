"""A thousand seeds: every promise is kept in each, and what was to be tried was tried."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from tests.simulation.__main__ import main
from tests.simulation.runner import Totals, cores, run_some, sweep
from tests.simulation.scenario import FAULTS, scenario
from tests.simulation.world import World, run

ROOT = Path(__file__).parents[2]
SEEDS = 1_000
BUSY = 291
"""a seed with a bit of everything"""


# A minute or so on two cores that have nothing else to do.
pytestmark = pytest.mark.timeout(1_200)


@pytest.fixture(scope="module")
def totals() -> Totals:
    done = Totals()
    for done in sweep(0, SEEDS, cores()):
        assert done.failed is None, f"make simulate SEED={done.failed}: {done.failure}"
    return done


def test_every_promise_is_kept(totals: Totals) -> None:
    assert totals.seeds == SEEDS


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault_happens(totals: Totals, kind: str) -> None:
    assert totals.power[kind] > 0


@pytest.mark.parametrize(
    ("what", "least"),
    [
        ("cells of crowds compared", 50),
        ("soon", 3_000),
        ("soon_published", 200),
        ("decisive", 500),
        ("promises_checked", 5_000),
        ("fences answered", 500),
        ("aborts", 500),
        ("rebalances", 1_000),
        ("evictions", 50),
        ("workers paused", 200),
        ("workers killed", 200),
        ("workers stopped", 100),
        ("kill a worker at a step: done", 50),
        ("pause a worker at a step: done", 50),
        ("stop a worker at a step: done", 20),
        ("producers fenced", 1_000),
        ("open transactions fenced", 200),
        ("lanes fenced", 200),
        ("leader changes", 500),
        ("stale leaders", 50),
        ("in-sync replicas lost", 100),
        ("not enough replicas", 50),
        ("records truncated at fail-over", 10),
        ("ends not available yet", 1),
        ("transactions timed out", 20),
        ("transaction coordinator fail-overs", 50),
        ("group coordinator fail-overs", 20),
        ("ends of transactions delayed", 50),
        ("batches rejected", 20),
        ("records compacted", 200),
        ("records taken by retention", 50),
        ("records broken", 2),
    ],
)
def test_what_makes_it_hard_really_happens(totals: Totals, what: str, least: int) -> None:
    assert totals.power[what] >= least


def test_one_seed_does_the_same_in_every_process() -> None:
    def shown(seed: str) -> str:
        command = [sys.executable, "-m", "tests.simulation", "--seed", str(BUSY)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        return done.stdout

    one, other = shown("1"), shown("2")
    assert one == other
    assert one.count("\n") > 100
    assert one.endswith(f"seed {BUSY}: every promise was kept\n")


def test_seeds_do_not_depend_on_those_before_them() -> None:
    alone = run(scenario(BUSY), traced=True)
    run_some(range(3))
    again = run(scenario(BUSY), traced=True)
    assert alone.trace == again.trace
    assert alone.power == again.power
    assert alone.seconds == again.seconds


def test_a_trace_tells_where_and_when_and_nothing_of_a_person() -> None:
    text = "\n".join(run(scenario(BUSY), traced=True).trace)
    assert "acknowledged" in text
    assert "canary" not in text
    assert "hidden" not in text


def test_without_the_gate_a_promise_is_broken_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_gate(_lane: Lane, _follower: Follower) -> None:
        return None

    monkeypatch.setattr(Lane, "_gate", no_gate)
    totals = run_some(range(20))
    assert totals.failed is not None
    assert "T1" in totals.failure


def test_a_run_that_does_not_get_done_fails() -> None:
    def lose_the_offsets(world: World) -> None:
        partition = world.broker.group.partition
        world.clock.at(world.scenario.until + 0.001, setattr, partition, "frozen", True)
        world.clock.at(world.scenario.until + 0.002, partition.refresh)
        world.clock.at(0.0, setattr, partition, "frozen", True)

    plain = replace(scenario(BUSY), faults=[], until=0.5)
    assert run(plain).failure is None
    failure = run(plain, change=lose_the_offsets).failure
    assert failure is not None
    assert failure.startswith("not done after")


@pytest.mark.parametrize(
    "options",
    [["--seeds", "abc"], ["--seeds", "0"], ["--seeds", "-3"], ["--seed", "x"], ["--first", ""], ["--sed", "1"]],
)
def test_an_option_that_is_wrong_is_one_line_and_exit_code_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(options)
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("simulate: ")
    assert said.err.count("\n") == 1


def test_a_seed_that_fails_is_named_with_the_command_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Totals(3, 1.0, failed=7, failure="1 findings: raw.web[0]@1 (T1)")
    monkeypatch.setattr("tests.simulation.__main__.sweep", lambda *_options: iter([failed]))
    assert main(["--seeds", "10"]) == 1
    assert "seed 7 failed: 1 findings: raw.web[0]@1 (T1)\nto see it: make simulate SEED=7\n" in capsys.readouterr().out
