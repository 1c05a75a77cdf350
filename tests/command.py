"""How the commands of the tests (`make chaos`, `make simulate`, ...) say what is wrong with what they were given."""

import argparse
from typing import NoReturn

__all__ = ["Arguments"]


class Arguments(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage around it, and ends with 2."""

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        self.exit(2, f"{self.prog}: {message}\n")
