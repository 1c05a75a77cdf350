"""Fuzz all readers, guided by coverage: `make fuzz SECONDS=60`, or `python -m tests.fuzz --seconds 60 documents`.

Each target runs for so long, beginning with the inputs of the tables. What is found is said in full and its input kept;
exit code 1. Needs atheris, which is not for everyone: without it, exit code 2.
"""

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.command import Arguments

ROOT = Path(__file__).parents[2]
MISSING = "fuzzing needs atheris, which is not installed: python -m pip install -e '.[fuzz]'"


class Result(NamedTuple):
    """What a run of one target came to. `found` is what the process said last, None if nothing was found."""

    executions: int
    coverage: int
    corpus: int
    found: str | None


def fuzz(name: str, seconds: int, home: Path) -> Result:
    """Run one target for so many seconds; its corpus and what it finds stay in `home`."""
    from tests.fuzz.targets import TARGETS, words

    corpus, seeds, dictionary = home / name, home / f"{name}-seeds", home / "words"
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (seeds / f"{number:04}").write_bytes(seed)
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in sorted(set(words()))))
    options = [f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=4096", "-max_len=4096"]
    options += ["-print_final_stats=1", f"-artifact_prefix={home}/found-{name}-", f"-dict={dictionary}"]
    command = [sys.executable, "-m", "tests.fuzz.harness", name, *options, str(corpus), str(seeds)]
    run = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    said = run.stdout.decode(errors="replace") + run.stderr.decode(errors="replace")
    executions = re.search(r"stat::number_of_executed_units: +(\d+)", said)
    reached = re.findall(r"cov: (\d+) .*?corp: (\d+)", said)
    coverage, size = (int(figure) for figure in reached[-1]) if reached else (0, 0)
    told = [line for line in said.splitlines() if not line.startswith(("INFO: ", "#"))]
    found = None if run.returncode == 0 else "\n".join([*told[-40:], f"exit code {run.returncode}"])
    return Result(int(executions[1]) if executions else 0, coverage, size, found)


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> int:
    """Fuzz what the command line names; the exit code."""
    from tests.fuzz.targets import TARGETS

    parser = Arguments(prog="fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; all, if none")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--keep", type=Path, help="folder of corpora, to go on from next time")
    options = parser.parse_args()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if options.seconds < 1:
        parser.error("--seconds: wanted 1 or more")
    if find_spec("atheris") is None:
        print(MISSING, file=sys.stderr)
        return 2
    home = options.keep or Path(tempfile.mkdtemp(prefix="celosia-fuzz-"))
    failed = False
    for name in options.targets or TARGETS:
        result = fuzz(name, options.seconds, home)
        rate = result.executions / options.seconds
        done = f"{result.executions:>10,} inputs {rate:>8,.0f}/s"
        reached = f"{result.coverage:>6} edges {result.corpus:>5} kept"
        print(f"{name:10}{done}{reached}{'' if result.found is None else '  FOUND'}", flush=True)
        if result.found is not None:
            failed = True
            print(result.found)
    if failed:
        print(f"the inputs are in {home}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
