"""What is listed as equivalent is still there: a list that outlives its code would excuse something else."""

import importlib
import inspect
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.run import EQUIVALENT, Mutant, given_by_assignment, listed, main

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("mutant", listed(EQUIVALENT.read_text()), ids=str)
def test_a_mutant_that_is_listed_changes_a_line_that_is_there(mutant: Mutant) -> None:
    parts = mutant.function.split(".")
    for cut in range(len(parts), 0, -1):
        if (ROOT / ("/".join(parts[:cut]) + ".py")).is_file():
            thing: Any = reduce(getattr, parts[cut:], importlib.import_module(".".join(parts[:cut])))
            break
    lines = [line.strip() for line in inspect.getsource(getattr(thing, "__wrapped__", thing)).splitlines()]
    for line in mutant.was.splitlines():
        assert line in lines, f"{mutant.function}: `{line}` is not there any more; strike it from the list"
    assert mutant.now != mutant.was


def test_a_list_says_why() -> None:
    entry = '[[mutant]]\nof = "streams.plan._floor"\nwas = "a"\nis = ["b", "c"]\nwhy = "%s"\n'
    expected = {Mutant("streams.plan._floor", "a", "b"): 1, Mutant("streams.plan._floor", "a", "c"): 1}
    assert listed(entry % "nothing changes") == expected
    with pytest.raises(ValueError, match="say why"):
        listed(entry % " ")


def test_a_cache_is_given_by_an_assignment_and_the_code_stays_the_same() -> None:
    source = """\
class A:
    @lru_cache(maxsize=4)
    def f(self):
        @lru_cache
        def g(): ...
        return g
x = 1
"""
    assert (
        given_by_assignment(source)
        == """\
class A:
    def f(self):
        def g(): ...
        g = lru_cache(g)  # pragma: no mutate
        return g
    f = lru_cache(maxsize=4)(f)  # pragma: no mutate
x = 1
"""
    )


@pytest.mark.parametrize("name", ["streams.nowhere.x_f", "--nonsense", "everything"])
def test_names_of_nothing_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([name])
    assert refused.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mutants: ")
