"""Mutation testing of the pure core: is there a test for everything that the code says?

    make mutants                                           everything
    make mutants ARGS="streams.consent.x_read_consent*"    some mutants, in mutmut's names
    make mutants ARGS=constants                            those outside of functions

mutmut (version 3) changes one small thing in a function and runs the tests that reach it; if all of them pass, the
mutant has survived. Rules of this file:

- It works on a copy under `.mutants/`, which git ignores; no file of the project is written. `.mutants/` stays, so that
  one can look: `cd .mutants && python -m mutmut browse`.
- mutmut passes over decorated functions, so functions with a cache are given it by an assignment in the copy. What
  stands outside of functions it does not mutate: `tests/mutation/constants.py` does.
- A mutant that survives is killed by a better test, or it is equivalent: then `equivalent.toml` says why. Exit code 1:
  a survivor is not listed, or one that is listed no longer survives.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.command import Arguments
from tests.mutation.constants import constants, survivors

__all__ = ["Mutant", "given_by_assignment", "listed"]

ROOT = Path(__file__).parent.parent.parent
COPY = ROOT / ".mutants"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
COPIED = ["streams", "tests", "schemas", "pyproject.toml"]
ENVIRONMENT = os.environ | {"HYPOTHESIS_PROFILE": "mutants"}
CONSTANTS = "constants"
KILLED = {1, 3}
OUT_OF_TIME = {36, -24, 24, 152, 255, -9}


class Mutant(NamedTuple):
    """A mutant told by what it changes: numbers move with every edit. Lines are stripped."""

    function: str
    was: str
    now: str

    def __str__(self) -> str:
        lines = [self.function]
        lines += [f"    - {line}" for line in self.was.splitlines()]
        lines += [f"    + {line}" for line in self.now.splitlines()]
        return "\n".join(lines)


def given_by_assignment(source: str) -> str:
    """Return the source of a module whose cached functions get their caches by an assignment after them.

    >>> print(given_by_assignment("@lru_cache(maxsize=9)\\ndef f():\\n    return 1\\n"), end="")
    def f():
        return 1
    f = lru_cache(maxsize=9)(f)  # pragma: no mutate
    """
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: node.lineno, reverse=True):
        for decorator in reversed(node.decorator_list):
            text = ast.unparse(decorator)
            if text.startswith("lru_cache"):
                given = f"{' ' * node.col_offset}{node.name} = {text}({node.name})  # pragma: no mutate"
                lines.insert(node.end_lineno or node.lineno, given)
                del lines[decorator.lineno - 1 : decorator.end_lineno]
    return "\n".join(lines) + "\n"


def listed(text: str) -> Counter[Mutant]:
    """Return the mutants that a list like `equivalent.toml` calls equivalent, and how often each may survive."""
    found: Counter[Mutant] = Counter()
    for entry in tomllib.loads(text)["mutant"]:
        if not entry["why"].strip():
            raise ValueError(f"{entry['of']}: say why")
        for now in [entry["is"]] if isinstance(entry["is"], str) else entry["is"]:
            found[Mutant(entry["of"], entry["was"].strip(), now.strip())] += entry.get("times", 1)
    return found


def _copy() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, COPY / name)
    for path in (COPY / "streams").rglob("*.py"):
        path.write_text(given_by_assignment(path.read_text()))


def _mutmut(*arguments: str, show: bool = False) -> str:
    """Run mutmut in the copy. With `show` its progress goes to the terminal, if there is one."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=COPY,
        env=ENVIRONMENT,
        stdout=None if show and sys.stdout.isatty() else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout or ''}\nmutmut {arguments[0]} ended with {done.returncode}")
    return done.stdout or ""


def _check_names() -> None:
    """Make sure that each test is found by its name, again and again in one process: a test that is not kills nothing.

    mutmut takes it for a kill when pytest does not know a name.
    """
    code = (
        "import json, pytest, sys; sys.path.insert(0, '.')\n"
        "names = sorted(json.load(open('mutmut-stats.json'))['duration_by_test'])\n"
        "args = ['--collect-only', '-qq', '-p', 'tests.mutation.fresh', '-p', 'no:cacheprovider', *names]\n"
        "sys.exit(max(pytest.main(list(args)) for _ in range(3)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=COPY / "mutants", env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-2000:]}\nsome tests are not found by their names: the result is worth nothing")


def _results() -> Iterator[tuple[str, int]]:
    for path in sorted((COPY / "mutants").rglob("*.py.meta")):
        for name, code in json.loads(path.read_text())["exit_code_by_key"].items():
            if code is not None:
                yield name, code


def _told(name: str) -> Mutant:
    """Return what a mutant changes; `name` is mutmut's."""
    module, _, rest = name.rpartition(".")
    function = re.sub(r"^x_|__mutmut_[0-9]+$", "", rest).replace("xǁ", "").replace("ǁ", ".")
    lines = _mutmut("show", name).splitlines()
    was = [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]
    now = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    return Mutant(f"{module}.{function}", "\n".join(was), "\n".join(now))


class Run(NamedTuple):
    """What became of some mutants: how many there were, how many of them the clock killed, and who is left by name."""

    made: int
    late: int
    left: list[tuple[str, Mutant]]


def _in_functions(names: list[str]) -> Run:
    _mutmut("run", *names, show=True)
    _check_names()
    # The clock is the wall's: on a busy machine a second chance tells an endless loop from a slow test.
    if late := [name for name, code in _results() if code in OUT_OF_TIME]:
        _mutmut("run", *late, show=True)
    results = dict(_results())
    late = [name for name, code in results.items() if code in OUT_OF_TIME]
    left = [name for name, code in results.items() if code not in KILLED | OUT_OF_TIME]
    return Run(len(results), len(late), [(name, _told(name)) for name in left])


def _outside_of_functions() -> Run:
    configured = tomllib.loads((COPY / "pyproject.toml").read_text())["tool"]["mutmut"]
    mutants = list(constants(COPY))
    left = survivors(COPY, mutants, configured["pytest_add_cli_args_test_selection"])
    return Run(len(mutants), 0, [(each.module, Mutant(each.module, each.was, each.now)) for each in left])


def _name(text: str) -> str:
    """A name of mutants as mutmut tells it, in a module that is mutated: mutmut itself ends with a traceback."""
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]["only_mutate"]
    paths = sorted(path.relative_to(ROOT).with_suffix("") for glob in globs for path in ROOT.glob(glob))
    modules = [".".join(path.parts) for path in paths]
    if text == CONSTANTS or text.startswith(tuple(f"{module}." for module in modules)):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is in none of {', '.join(modules)}")


def main(arguments: list[str]) -> int:
    """Run the mutants with these names, or all; print survivors; return the exit code."""
    parser = Arguments(prog="mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", type=_name, metavar="NAME", help="as mutmut tells them; or constants")
    names: list[str] = parser.parse_args(arguments).names
    started = time.monotonic()
    _copy()
    some = [name for name in names if name != CONSTANTS]
    runs = [_in_functions(some)] if some or not names else []
    if not names or CONSTANTS in names:
        runs.append(_outside_of_functions())
    allowed = listed(EQUIVALENT.read_text())
    left = [survivor for run in runs for survivor in run.left]
    unlisted = 0
    for name, mutant in left:
        if allowed[mutant]:
            allowed[mutant] -= 1
        else:
            unlisted += 1
            print(f"\nsurvived: {name}\n{mutant}")
    stale = [] if names else list(+allowed)
    for mutant in stale:
        print(f"\nlisted as equivalent, and it did not survive:\n{mutant}")
    made, late = sum(run.made for run in runs), sum(run.late for run in runs)
    print(f"\n{made} mutants in {time.monotonic() - started:.0f} s: {made - len(left)} killed ({late} by the clock),")
    print(f"{len(left) - unlisted} equivalent (tests/mutation/equivalent.toml says why), {unlisted} survived")
    return 1 if unlisted or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
