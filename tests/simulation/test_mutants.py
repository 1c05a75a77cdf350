"""Each mutant of the guarantees and of the crowd gate is noticed. The table stands at the end of the test output."""

import pytest

from tests.simulation.crowd_mutants import CROWD_MUTANTS
from tests.simulation.mutants import MUTANTS, Mutant, hunt


@pytest.mark.parametrize("mutant", [*MUTANTS, *CROWD_MUTANTS], ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant: Mutant, said: dict[str, list[str]]) -> None:
    kill = hunt(mutant)
    assert kill is not None, f"{mutant.name}, {mutant.what}: nothing noticed it"
    line = f"{mutant.name:<4} {mutant.what:<34} simulation, seed {kill.seed} (number {kill.tried} that was tried)"
    said.setdefault("mutants and what killed them", []).extend([line, f"     {kill.found}"])


def test_the_list_is_whole() -> None:
    assert [mutant.name for mutant in MUTANTS] == [f"M{number}" for number in range(1, 19)]
    assert [mutant.name for mutant in CROWD_MUTANTS] == [f"C{number}" for number in range(1, 6)]
