"""Mutants of what stands outside of functions: limits, words, patterns, the order of rungs and refusals.

mutmut makes these too and throws them away, because it forks a process in which the modules are imported already. Here
each gets a process of its own: slower, and there are few. Left out: `__all__` and `__slots__`, which say nothing that
runs, and the tables of `streams/transforms/`, whose examples are tests themselves.
"""

import ast
import difflib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

__all__ = ["Constant", "constants", "survivors"]

MODULES = ["consent", "decision", "minimized", "outcome", "pipeline", "plan", "sources/document"]
SILENT = {"__all__", "__slots__"}
LONGEST = 600
"""seconds that the tests of one mutant may take; the originals take less than a tenth of it on an idle machine"""


class Constant(NamedTuple):
    """A mutant: the file below the root of the project, what it changes there, and all of the file's text."""

    file: str
    was: str
    now: str
    text: str

    @property
    def module(self) -> str:
        """The name of the module."""
        return self.file.removesuffix(".py").replace("/", ".")


def constants(root: Path) -> Iterator[Constant]:
    """Yield all mutants outside of functions."""
    maker = importlib.import_module("mutmut.mutation.file_mutation")
    for name in MODULES:
        file = f"streams/{name}.py"
        source = (root / file).read_text()
        silent = _silent_lines(source)
        tree, mutations, *_ = maker.create_mutations(file, source)
        for mutation in mutations:
            if type(mutation.contained_by_top_level_function).__name__ == "FunctionDef":
                continue
            text = maker.deep_replace(tree, mutation.original_node, mutation.mutated_node).code
            matcher = difflib.SequenceMatcher(None, source.splitlines(), text.splitlines(), autojunk=False)
            changed = [each[1:] for each in matcher.get_opcodes() if each[0] != "equal"]
            if any(line + 1 in silent for first, last, *_ in changed for line in range(first, last)):
                continue
            was = [line.strip() for first, last, *_ in changed for line in source.splitlines()[first:last]]
            now = [line.strip() for *_, first, last in changed for line in text.splitlines()[first:last]]
            yield Constant(file, "\n".join(was), "\n".join(now), text)


def _silent_lines(source: str) -> set[int]:
    return {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id in SILENT for to in node.targets)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def survivors(original: Path, mutants: Iterable[Constant], tests: list[str]) -> Iterator[Constant]:
    """Yield the mutants that all tests pass with. `original` is a copy of the project, in which copies are made."""
    workers = os.cpu_count() or 2
    trees: SimpleQueue[Path] = SimpleQueue()
    for number in range(workers):
        tree = original / f"constants-{number}"
        tree.mkdir()
        for name in ("streams", "tests", "schemas"):
            shutil.copytree(original / name, tree / name)
        shutil.copy2(original / "pyproject.toml", tree)
        trees.put(tree)
        if number == 0 and not _pass(tree, tests):
            raise SystemExit("the tests do not pass without a mutant")

    def survives(mutant: Constant) -> bool:
        tree = trees.get()
        try:
            before = (tree / mutant.file).read_text()
            (tree / mutant.file).write_text(mutant.text)
            passed = _pass(tree, tests)
            (tree / mutant.file).write_text(before)
            return passed
        finally:
            trees.put(tree)

    all_mutants = list(mutants)
    with ThreadPoolExecutor(workers) as pool:
        for mutant, survived in zip(all_mutants, pool.map(survives, all_mutants), strict=True):
            if survived:
                yield mutant


def _pass(tree: Path, tests: list[str]) -> bool:
    # Without bytecode: a file that is written twice in a second may be taken for its older self.
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants", "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-x", "-q", "-p", "tests.mutation.fresh", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
