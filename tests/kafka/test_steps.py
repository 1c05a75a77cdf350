"""Waiting for a step: what it comes to, what ends the waiting, and that no failure is left to asyncio to print."""

import asyncio
import gc
from typing import Any

import pytest

from streams.kafka.port import PortError
from streams.kafka.steps import Stopped, begin, unless


async def seven() -> int:
    return 7


async def test_a_step_that_ends_first_comes_to_its_result() -> None:
    assert await unless(asyncio.Event(), seven()) == 7


async def test_the_order_to_stop_ends_the_waiting_and_the_step() -> None:
    stopping, step = asyncio.Event(), asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(stopping.set)
    with pytest.raises(Stopped):
        await unless(stopping, step)
    await asyncio.wait([step])
    assert step.cancelled()


async def test_a_time_ends_the_waiting() -> None:
    with pytest.raises(TimeoutError):
        await unless(asyncio.Event(), asyncio.Event().wait(), 0.0)


async def test_a_failure_is_raised() -> None:
    async def fail() -> None:
        raise PortError("a fault")

    with pytest.raises(PortError):
        await unless(asyncio.Event(), fail())


async def test_a_failure_that_nobody_is_left_to_see_is_not_printed() -> None:
    # Found by the simulation (seed 94388): a follower was cancelled in the moment in which its reading failed.
    printed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: printed.append(context))

    async def fail() -> None:
        raise PortError("a fault")

    steps = [begin(fail())]
    await asyncio.wait(steps)
    steps.clear()
    gc.collect()
    assert printed == []
