"""`make chaos`: workers, brokers and links are hurt for a while, and then everything is checked.

    make chaos                       # three minutes
    make chaos SECONDS=3600          # an hour, more than a million events, unattended
    make chaos SEED=7                # the same choice of faults as in another run with this seed

What was done comes with its times, so that a run can be understood; a seed repeats the choices, not the moments.
Ends with 0 if every promise was kept, with 1 if not, and with 2 if the run could not be made.
"""

import argparse
import math
import random
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from streams.errors import BrokerFailed
from tests.chaos.run import Order, run
from tests.command import Arguments


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _natural(text: str) -> int:
    with suppress(ValueError):
        if (number := int(text)) >= 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


def _read(arguments: list[str] | None) -> Order:
    parser = Arguments(prog="chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=_positive, default=180.0, help="how long faults come (180)")
    parser.add_argument("--events", type=_natural, default=0, help="at the least (300 a second)")
    parser.add_argument("--seed", type=_natural, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--people", type=_natural, default=2_000)
    parser.add_argument(
        "--gate", choices=["fast", "strict", "both"], default="both", help="both: half of the time each"
    )
    parser.add_argument("--short", action="store_true", help="one fault of each sort on nodes, not all kinds")
    given = parser.parse_args(arguments)
    if given.people < 1:
        parser.error("argument --people: nobody is left")
    gates = ("fast", "strict") if given.gate == "both" else (given.gate,)
    return Order(given.seconds, given.events, given.seed, given.people, gates, given.short)


def _told(error: BaseException) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return "\n".join([str(error), *notes])


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Make one run; returns the exit code."""
    order = _read(arguments)

    def end(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        result = run(order, _say)
    except BrokerFailed as error:
        first, *more = _told(error).splitlines()
        if more:
            with tempfile.NamedTemporaryFile("w", prefix="celosia-chaos-", suffix=".txt", delete=False) as kept:
                kept.write("\n".join(more))
            first += f" ({Path(kept.name)})"
        print(f"chaos: {first}", file=sys.stderr)
        return 2
    except AssertionError as error:
        print(_told(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"chaos: ended before its time; seed {order.seed}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    for line in [*result.done, *result.lines()]:
        _say(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
