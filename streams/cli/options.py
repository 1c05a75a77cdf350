"""The options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = [
    "READABLE",
    "READABLE_OR_STDIN",
    "bootstrap_option",
    "group_option",
    "key_file_option",
    "option",
    "policy_option",
]

READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
READABLE_OR_STDIN = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


def option(name: str, words: str, **more: Any) -> Callable[[Any], Any]:
    """An option that can also be given as CELOSIA_NAME."""
    return click.option(name, help=words, envvar=f"CELOSIA_{name[2:].replace('-', '_').upper()}", **more)


policy_option = option("--policy", "The policy file.", type=READABLE, required=True)
key_file_option = option(
    "--key-file", "The key of pseudonyms; without it, the one of this installation.", type=click.Path(path_type=Path)
)
bootstrap_option = option("--bootstrap", "Kafka's bootstrap servers.", metavar="HOST:PORT", required=True)
group_option = option("--group", "The consumer group.  [default: celosia- and the policy's name]")
