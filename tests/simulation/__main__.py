"""`make simulate SEEDS=1000`: runs seeds and prints the first that fails. `make simulate SEED=17`: shows one seed.

Exit code 0: every promise was kept; 1: one was not; 2: an option is wrong.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.command import Arguments
from tests.simulation.runner import Totals, cores, sweep
from tests.simulation.scenario import FAULTS, scenario
from tests.simulation.world import run


def _number(least: int) -> "type[int]":
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least or len(text) > 12:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number  # type: ignore[return-value]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Arguments(prog="simulate", description=__doc__)
    parser.add_argument("--seeds", metavar="N", type=_number(1), default=1_000, help="how many seeds to run")
    parser.add_argument("--first", metavar="K", type=_number(0), default=0, help="the first of them")
    parser.add_argument("--seed", metavar="N", type=_number(0), help="run this one only, and show what happens")
    parser.add_argument("--processes", metavar="N", type=_number(1), default=cores(), help="how many run at once")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run what the options say; returns the exit code."""
    options = _options(arguments)
    return _show(options.seed) if options.seed is not None else _sweep(options)


def _show(seed: int) -> int:
    """Run one seed and print all that happens: virtual seconds, who, what."""
    plan = scenario(seed)
    print(
        f"seed {seed}: {plan.partitions} partitions, {plan.workers} workers, the {'strict' if plan.strict else 'fast'} "
        f"gate, {len(plan.faults)} faults until {plan.until:.2f} s"
    )
    result = run(plan, traced=True)
    print("\n".join(result.trace))
    for name, count in sorted(result.power.items()):
        print(f"{count:10,} {name}")
    print(f"seed {seed}: {result.failure or 'every promise was kept'}")
    return 1 if result.failure else 0


def _sweep(options: argparse.Namespace) -> int:
    began = told = time.monotonic()
    totals = Totals()
    print(
        f"seeds {options.first:,} to {options.first + options.seeds - 1:,} on {options.processes} processes", flush=True
    )
    for totals in sweep(options.first, options.seeds, options.processes):
        now = time.monotonic()
        if now - told > 10:
            told = now
            left = (now - began) / totals.seeds * (options.seeds - totals.seeds)
            print(f"{totals.seeds:>9,} seeds in {now - began:,.0f} s, {left:,.0f} s to go", flush=True)
    seconds = time.monotonic() - began
    print("\n".join(_power(totals)))
    print(f"{totals.seeds:,} seeds, {totals.seconds / 3600:,.1f} virtual hours in {seconds:,.0f} s")
    if totals.failed is not None:
        print(f"seed {totals.failed} failed: {totals.failure}\nto see it: make simulate SEED={totals.failed}")
        return 1
    print("every promise was kept")
    return 0


def _power(totals: Totals) -> list[str]:
    """Say what was tried."""
    power = totals.power
    lines = ["faults:", *(f"{power[kind]:12,} {kind}" for kind in FAULTS)]
    return [*lines, "what happened:", *(f"{power[name]:12,} {name}" for name in sorted(set(power) - set(FAULTS)))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
