"""A pytest plugin for mutated code: every test starts without what an earlier one has cached, and draws the same data.

A plan that was compiled by the original must not serve a test of a mutant, and a test that finds its plan compiled
must still be counted among those that reach the compiler. With fixed draws a mutant is killed today if it was killed
yesterday; no time goes into shrinking what is thrown away.

Each mutant is tested in a fork of a process that has run pytest before. Two hooks below are for that.
"""

import sys
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "mutants",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@cache
def _clears() -> tuple[Callable[[], None], ...]:
    ours = [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] in ("streams", "tests")]
    caches = [value for module in ours for value in vars(module).values() if hasattr(value, "cache_clear")]
    return tuple(value.cache_clear for value in caches if value is not _clears)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Empty all caches that modules hold."""
    for clear in _clears():
        clear()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Forget the ids of the session before: pytest would escape them once more, and find none of the tests named."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark._param_ids_from is not None:
            object.__setattr__(mark._param_ids_from, "_param_ids_generated", None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let mutmut 3.7 find the name of a test where it looks for it: newer versions of pytest keep it elsewhere."""
    vars(item).setdefault("_nodeid", item.nodeid)
