"""One target under atheris, in a process of its own: `python -m tests.fuzz.harness TARGET [libFuzzer's options]`.

atheris counts what it reaches in modules that are imported under its eye: those of `streams`, and none of the tests.
"""

import sys
from importlib import import_module
from typing import Any

from tests.fuzz.found import is_known


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["streams"]):
        targets = import_module("tests.fuzz.targets")
    name = sys.argv.pop(1)
    run = targets.TARGETS[name].run

    def one(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:
            if not is_known(name, error):
                raise

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
