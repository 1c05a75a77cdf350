"""The examples in the docstrings of streams/ run and show what they say."""

import doctest
from importlib import import_module
from pkgutil import walk_packages

import pytest

import streams

MODULES = ["streams", *(module.name for module in walk_packages(streams.__path__, "streams."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_show_what_happens(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0, "the output above says which example is wrong"


def test_examples_are_found_at_all() -> None:
    found = doctest.DocTestFinder()
    examples = {name: sum(len(test.examples) for test in found.find(import_module(name))) for name in MODULES}
    assert examples["streams"] == 1
    assert examples["streams.keys"] > 5
    assert examples["streams.sources.document"] > 1
