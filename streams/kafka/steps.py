"""Waiting for a step, but not past the order to stop, nor past a time."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

__all__ = ["Stopped", "begin", "unless"]

T = TypeVar("T")


class Stopped(Exception):
    """The order to stop came while a step was waited for."""


def begin(step: Awaitable[T]) -> "asyncio.Future[T]":
    """Start a step beside others.

    Its failure is raised to who awaits it. If nobody is left who does, because the one who did was cancelled in that
    moment, it is gone: asyncio would print it, with whatever it says.
    """
    task = asyncio.ensure_future(step)
    task.add_done_callback(_seen)
    return task


def _seen(task: "asyncio.Future[T]") -> None:
    if not task.cancelled():
        task.exception()


async def unless(stopping: asyncio.Event, step: Awaitable[T], seconds: float | None = None) -> T:
    """Return what a step comes to; it is cancelled when the order to stop comes first.

    Raises:
        Stopped: the order came.
        TimeoutError: so many seconds have passed.
    """
    task, stop = begin(step), begin(stopping.wait())
    both: list[asyncio.Future[Any]] = [task, stop]
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Stopped if stop.done() else TimeoutError
    finally:
        task.cancel()
        stop.cancel()
