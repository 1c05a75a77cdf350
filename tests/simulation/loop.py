"""Virtual time, and processes that run in it.

    Clock      one heap of what happens when; time jumps to the next entry as soon as nothing is left to do now
    Process    an asyncio event loop of its own, as one operating system process has: it can be stopped and continued
               (SIGSTOP, SIGCONT), or killed

Rules of this file:
- Nothing here waits, reads a real clock or draws a number: what happens is decided by who asked first.
- A stopped process runs nothing. When it is continued, it runs first what was ready when it was stopped, then takes
  what has come into its sockets, then its timers that are due, as asyncio does; and what it was about to send when it
  was stopped leaves it only now.
- A killed process is cut off first. Its tasks are then cancelled, so that no coroutine is left hanging, and nothing
  that their `finally` blocks do reaches anybody.
- Each call takes a nanosecond, so that of two things it is known which came first.
"""

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import TYPE_CHECKING, Any

__all__ = ["Clock", "Deadlock", "Handle", "Process"]

_TICK = 1e-9


class Deadlock(AssertionError):
    """Nothing will ever happen any more, and the run is not over."""


class Handle:
    """A call that is to be made; `process` is None for what is nobody's but the world's."""

    __slots__ = ("args", "callback", "cancelled_", "process", "when_")

    def __init__(self, process: "Process | None", callback: Callable[..., object], args: Any, when: float) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.when_ = when
        self.cancelled_ = False

    def cancel(self) -> None:
        """Make it not happen."""
        self.cancelled_ = True

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self.cancelled_

    def when(self) -> float:
        """When it is due."""
        return self.when_


class Clock:
    """The time of a run, in seconds, and all that is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.over = False
        """set by whoever ends the run"""
        self.calls = 0
        self.ready: deque[Handle] = deque()
        self._heap: list[tuple[float, int, Handle]] = []
        self._numbers = count()

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Call it at a time; not in the past."""
        handle = Handle(None, callback, args, when)
        heapq.heappush(self._heap, (when, next(self._numbers), handle))
        return handle

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Call it after so many seconds."""
        return self.push(Handle(None, callback, args, self.now + delay))

    def push(self, handle: Handle) -> Handle:
        """Remember what is to happen."""
        heapq.heappush(self._heap, (handle.when_, next(self._numbers), handle))
        return handle

    def run(self, until: float = float("inf")) -> None:
        """Let things happen until somebody says that it is over, or until a time.

        Raises:
            Deadlock: nothing is left that could happen.
        """
        ready, heap, pop = self.ready, self._heap, heapq.heappop
        inside: Process | None = None
        outside = events._get_running_loop()
        self.over = False
        try:
            while not self.over:
                if ready:
                    handle = ready.popleft()
                    self.now += _TICK
                elif heap:
                    when, _, handle = pop(heap)
                    if handle.cancelled_:
                        continue
                    if when > until:
                        self.push(handle)
                        self.now = until
                        return
                    self.now = max(self.now + _TICK, when)
                    if handle.process is not None and handle.process.stopped:
                        handle.process.late.append(handle)
                        continue
                elif until < float("inf"):
                    self.now = until
                    return
                else:
                    raise Deadlock("nothing will ever happen any more")
                if handle.cancelled_:
                    continue
                process = handle.process
                if process is not None:
                    if process.stopped:
                        process.held.append(handle)
                        continue
                    if process is not inside:
                        events._set_running_loop(process)
                        inside = process
                self.calls += 1
                handle.callback(*handle.args)
        finally:
            events._set_running_loop(outside)


if TYPE_CHECKING:
    # What a loop has for the world outside is not here: nothing in a simulation may reach it.
    from asyncio import BaseEventLoop as _Loop
else:
    from asyncio import AbstractEventLoop as _Loop


class Process(_Loop):
    """One process: what runs in it, whether it is stopped, and whether it is cut off for good."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.stopped = False
        self.killed = False
        self.failures: list[str] = []
        """what no task of this process was there to catch"""
        self.held: deque[Handle] = deque()
        self.late: deque[Handle] = deque()
        self._inbox: list[tuple[Callable[..., object], Any]] = []
        self._outbox: list[tuple[Callable[..., object], Any]] = []

    # --- what happens to it ------------------------------------------------------------------------------------------

    def stop_for(self, seconds: float) -> None:
        """SIGSTOP now, wherever it is, and SIGCONT after so many seconds."""
        if not self.stopped and not self.killed:
            self.stopped = True
            self.clock.after(seconds, self.resume)

    def resume(self) -> None:
        """SIGCONT."""
        if not self.stopped:
            return
        self.stopped = False
        outbox, self._outbox = self._outbox, []
        if not self.killed:
            for callback, args in outbox:
                callback(*args)
        inbox, self._inbox = self._inbox, []
        ready = self.clock.ready
        ready.extend(self.held)
        ready.extend(Handle(self, callback, args, 0.0) for callback, args in inbox)
        ready.extend(self.late)
        self.held.clear()
        self.late.clear()

    def kill(self) -> None:
        """Kill -9."""
        if self.killed:
            return
        self.killed = True
        self._inbox.clear()
        self.resume()
        for task in sorted(asyncio.all_tasks(self), key=_number):
            task.cancel()

    def leave(self, callback: Callable[..., object], *args: Any) -> None:
        """Let something out of the process: now, or when it is continued, or never."""
        if self.killed:
            return
        if self.stopped:
            self._outbox.append((callback, args))
        else:
            callback(*args)

    def enter(self, callback: Callable[..., object], *args: Any) -> None:
        """Let something into the process."""
        if self.killed:
            return
        if self.stopped:
            self._inbox.append((callback, args))
        else:
            callback(*args)

    def start(self, main: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a coroutine in it, from outside."""
        return asyncio.Task(main, loop=self)

    # --- what asyncio asks of a loop ---------------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """See asyncio. Nothing in here uses context variables, so all calls share one context."""
        handle = Handle(self, callback, args, 0.0)
        self.clock.ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """See asyncio."""
        return self.clock.push(Handle(self, callback, args, self.clock.now + delay))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """See asyncio."""
        return self.clock.push(Handle(self, callback, args, when))

    def time(self) -> float:
        """See asyncio."""
        return self.clock.now

    def create_future(self) -> "asyncio.Future[Any]":
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Context | None = None) -> Any:
        """See asyncio."""
        return asyncio.Task(coro, loop=self, name=name)

    def get_debug(self) -> bool:
        """See asyncio."""
        return False

    def is_running(self) -> bool:
        """See asyncio."""
        return True

    def is_closed(self) -> bool:
        """See asyncio."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See asyncio. A killed process fails at nothing."""
        if not self.killed:
            self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")


def _number(task: "asyncio.Task[Any]") -> int:
    """Return how many tasks were made before this one: the order of a set is not the same twice."""
    return int(task.get_name().rpartition("-")[2])
