"""The command `celosia`.

Rules of this package:
- Options in, one call, text out. What a command knows, it knows from the module that it calls.
- A command imports what it needs when it runs: `check` and `explain` answer before Faust would have been loaded.
- Exit codes: 0 fine, 1 refused or failed (the reason in one message on standard error), 2 wrong usage.
- Never a traceback: what an unexpected error quotes may be personal data. Its type and place are told, no more.
"""

import errno
import traceback
from pathlib import Path
from typing import Any

import click

from streams.cli.offline import check, explain, filter_, key, trace
from streams.cli.online import demo, run, topics, withdraw
from streams.errors import CelosiaError

__all__ = ["main"]


class _Commands(click.Group):
    """Commands whose errors are one message each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CelosiaError as error:
            message = str(error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever read our output has seen enough
            message = _unexpected(error)
        click.echo(f"celosia: {message}", err=True)
        return ctx.exit(1)


def _unexpected(error: Exception) -> str:
    # INVARIANT (discretion): not the message of the error, and no values of variables.
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return f"unexpected {type(error).__name__}, which is a bug; please report it with this: {' '.join(places[-6:])}"


_COMMANDS = (check, explain, filter_, key, trace, topics, run, withdraw, demo)


@click.group(
    cls=_Commands,
    commands={str(command.name): command for command in _COMMANDS},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="celosia", prog_name="celosia")
def main() -> None:
    """Lets behaviour events through as far as each person's consent goes, and keeps who is behind them unseen."""
