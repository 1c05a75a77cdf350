"""For those who run their workers with Faust's own command: `faust -A streams.kafka.worker worker`.

The settings come from the environment (`CELOSIA_BOOTSTRAP`, `CELOSIA_POLICY`, ...); `celosia run` is the same thing.
"""

from functools import cache
from typing import Any

from streams.kafka.app import CelosiaApp, make_app
from streams.settings import read_settings

__all__ = ["app"]  # noqa: F822 - made by __getattr__


@cache
def _app() -> CelosiaApp:
    return make_app(read_settings())


def __getattr__(name: str) -> Any:
    # Made when it is asked for: importing a module has no side effects here.
    if name == "app":
        return _app()
    raise AttributeError(name)
