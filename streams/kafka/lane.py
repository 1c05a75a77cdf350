"""The exactly-once worker of one partition number.

    1 assigned   confirm membership; start the producer with the partition's transactional id, which fences every older
                 owner and ends its transaction; only then ask for the committed offsets; seek
    2 read       take a batch; then the gate: ask the consent partition's end offset (strict: write a barrier to it)
                 and wait until the follower has passed it. A gate that waits long parks the batch; it never lets it
                 through
    3 process    in one piece, without an await; begin; send everything; send offsets; commit. Any failure: abort, close
                 the producer, go to 1. A commit is never repeated: the truth is `committed()`
    4 receipt    consent changes that were applied before a batch was processed get their receipt in that batch's
                 transaction; an idle lane opens one for them at once
    5 revoked    finish or abort, and close the producer before returning

Why a receipt may be believed: a lane has one transaction open at a time, so the receipt becomes visible after
everything that was computed under the older consent, and nothing computed under it comes after.

Rules of this file: no clock but the one passed in, no sleep that a promise rests on, no retry on an unknown result.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import msgspec

from streams.consent import Consents
from streams.event import Reason
from streams.kafka.follower import Follower
from streams.kafka.port import Batch, Fenced, LanePort, OffsetsGone, PortError, Sends, Unreadable, describe
from streams.kafka.steps import Stopped, begin, unless
from streams.kafka.work import BoundAgent, LaneSettings, LaneState, Receipt, State, View, Watch, Work
from streams.outcome import Coordinates, Output, QuarantineRecord, quarantined
from streams.plan import Plan

__all__ = ["Lane"]

log = logging.getLogger("celosia.lane")
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class Lane:
    """One lane. `run` ends when `stop` was called, or when it is cancelled."""

    def __init__(
        self,
        agent: BoundAgent,
        partition: int,
        port: LanePort,
        follower: Follower | None,
        *,
        plan: Plan,
        partitions: int,
        clock: Callable[[], int],
        settings: LaneSettings,
        watch: Watch,
    ) -> None:
        self.name = f"{agent.name}-{partition}"
        self.partition = partition
        self.state = LaneState.STARTING
        self._agent = agent
        self._port = port
        self._follower = follower
        self._plan = plan
        self._partitions = partitions
        self._state_topic = agent.state_topic(plan)
        self._known: State | None = None
        """what the agent knows from earlier batches"""
        self._clock = clock
        self._settings = settings
        self._watch = watch
        self._stopping = asyncio.Event()
        self._progress = False
        self._broken: dict[str, int] = {}
        self._told: dict[str, int | None] | None = None
        """the committed offsets that this start goes by, until a transaction has shown that they are the true ones"""
        self._receipted = (0, -1)
        """era and position of the follower at the last receipt"""

    def stop(self) -> None:
        """Ask the lane to finish its transaction and end."""
        self._stopping.set()

    def lag(self) -> dict[str, int]:
        """Return, by topic, how many records are waiting, as far as is known."""
        return self._port.lag()

    @property
    def ready(self) -> bool:
        """Whether the lane has passed its gate and is not parked."""
        return self.state is LaneState.RUNNING

    async def run(self) -> None:
        """Live until stopped. Leaves neither a producer nor an open transaction behind."""
        pause = self._settings.pause
        try:
            while not self._stopping.is_set():
                try:
                    if not await unless(self._stopping, self._port.confirm()):
                        raise Fenced
                    await self._start()
                    await self._work()
                except Fenced:
                    # Another's, and the next assignment ends this lane. Or the coordinator, or one that takes over,
                    # counts us as a member: then nobody else works here but an older worker, and we fence it in turn.
                    self._become(LaneState.FENCED)
                except PortError as error:
                    self._become(LaneState.RESTARTING, describe(error))
                except Stopped:
                    return
                await self._port.close_producer(abort=True)
                pause = self._settings.pause if self._progress else min(2 * pause, 5.0)
                self._progress = False
                with suppress(Stopped):
                    await unless(self._stopping, asyncio.sleep(pause))
        finally:
            await self._port.close_producer(abort=True)
            await self._port.close()
            self._become(LaneState.STOPPED)

    async def _start(self) -> None:
        self._become(LaneState.STARTING)
        # INVARIANT (exactly once): fence first, then ask. An offset read before the fence may still be overtaken by
        # the commit of the owner before us, and its batch would be published twice.
        await self._within(self._port.init_transactions())
        committed = self._told = await self._within(self._port.committed())
        if self._state_topic is not None:
            await self._restore(committed.get(self._state_topic) or 0)
        await self._within(
            self._port.seek({topic: at for topic, at in committed.items() if topic != self._state_topic})
        )
        self._become(LaneState.GATE)
        if self._follower is not None:
            await self._gate(self._follower)
        self._become(LaneState.RUNNING)

    async def _restore(self, through: int) -> None:
        """Read what earlier batches have left.

        INVARIANT (exactly once): up to where it was when the offsets were committed that this start goes by. A leader
        that is cut off does not have all of it.
        """
        found: dict[bytes, bytes] = {}
        batches = aiter(self._port.read_state(through))
        while (records := await self._within(anext(batches, None))) is not None:
            for record in records:
                # As compaction does it, and in the order in which they were written.
                found.pop(record.key or b"", None)
                if record.value is not None:
                    found[record.key or b""] = record.value
        if self._agent.state is not None:
            self._known = self._agent.state(self._plan, self.partition, self._partitions)
            try:
                for _ in self._known.restore(list(found.items())):
                    await asyncio.sleep(0)
            except ValueError:
                # INVARIANT (fail closed): nothing is counted on top of what is not known. The error quotes records.
                raise PortError(
                    f"{self._state_topic}: the state cannot be read; it was made with another key, or somebody else "
                    "writes there"
                ) from None

    async def _work(self) -> None:
        reading: asyncio.Future[list[Batch]] | None = None
        try:
            while True:
                if reading is None:
                    reading = begin(self._port.read_batch())
                await self._wait_for(reading)
                if reading.done():
                    done, reading = reading, None
                    try:
                        batches = done.result()
                    except OffsetsGone as gone:
                        await self._skip(gone)
                        continue
                    if batches:
                        await self._handle(batches)
                    elif self._agent.idle is not None and (work := self._agent.idle(self._view())).sends:
                        await self._commit(work, {})
                elif self._follower is not None and self._follower.changed > self._receipted:
                    await self._commit(Work({}, {}), {})
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _wait_for(self, reading: "asyncio.Future[list[Batch]]") -> None:
        """Wait for a batch, for a consent change without a receipt, or for the order to stop."""
        if self._stopping.is_set():
            raise Stopped
        waits: list[asyncio.Future[object]] = [reading, begin(self._stopping.wait())]  # type: ignore[list-item]
        if self._follower is not None:
            waits.append(begin(self._follower.change_after(self._receipted)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits[1:]:
                wait.cancel()
        if self._stopping.is_set():
            raise Stopped

    async def _handle(self, batches: list[Batch]) -> None:
        if self._follower is not None:
            # INVARIANT (T1): the gate comes after the batch. A question asked earlier knows nothing of a withdrawal
            # that was acknowledged in between, and the batch may hold events that followed it.
            await self._gate(self._follower)
        # From here to the end of `_process` nothing is awaited: no consent changes under a batch.
        work = self._process(batches)
        await self._commit(work, {batch.topic: batch.next_offset for batch in batches})

    def _process(self, batches: list[Batch]) -> Work:
        view = self._view()
        work = self._agent.function(batches[0], view)
        for batch in batches[1:]:
            more = self._agent.function(batch, view)
            for place, outputs in more.sends.items():
                work.sends.setdefault(place, []).extend(outputs)
            for tally, count in more.tallies.items():
                work.tallies[tally] = work.tallies.get(tally, 0) + count
        return work

    def _view(self) -> View:
        consents = Consents() if self._follower is None else self._follower.consents
        lag = {} if self._known is None else self._port.lag()
        return View(self._plan, self.partition, self._partitions, consents, self._clock(), self._known, lag)

    async def _gate(self, follower: Follower) -> None:
        loop = asyncio.get_running_loop()
        began, resume = loop.time(), self.state
        ask = self._port.write_barrier if self._settings.gate == "strict" else self._port.end_offset
        while True:
            # Before the question: while it is under way the follower may read what is written after the answer.
            position = follower.position
            end = await self._within(ask())
            if follower.position >= 0 and (end.offset < position or end.topic_id != follower.topic_id):
                # INVARIANT (fail closed): what was read of another topic, or of a part that is no more, counts for
                # nothing. Offsets alone do not show it: the new topic may have grown beyond the old position.
                log.error("lane %s: the consent topic is not the one that was read: rebuilding, all denied", self.name)
                follower.rebuild()
            # INVARIANT (fail closed): however long it takes, the batch waits. It asks again now and then: the answer
            # may have been about a topic that is no more, and a later one is never weaker.
            if await self._reached(follower, end.offset) and end.topic_id == follower.topic_id:
                break
        self._become(resume if resume is not LaneState.PARKED else LaneState.RUNNING)
        self._watch.gate(self.name, loop.time() - began)

    async def _reached(self, follower: Follower, end: int) -> bool:
        """Wait until the follower has read up to an offset, but not for ever; tell whether it has."""
        try:
            await unless(self._stopping, follower.reach(end), self._settings.patience)
        except TimeoutError:
            self._become(LaneState.PARKED, f"consents at {follower.position} of {end}")
        return follower.position >= end

    async def _commit(self, work: Work, offsets: Mapping[str, int]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        receipted, written = self._receipted, []
        sends: Sends = work.sends
        if self._follower is not None and (self._follower.era, self._follower.position) > receipted:
            # INVARIANT (T2): taken after the batch was processed without an await, so nothing in this transaction was
            # computed under an older consent; and everything older was committed before this one begins.
            receipted = self._follower.era, self._follower.position
            written, self._follower.unreceipted = self._follower.unreceipted, []
            receipt = self._receipt(self._follower.position)
            sends = {**work.sends, (receipt.topic, self.partition): [receipt]}
        await self._within(self._port.begin())
        ends = await self._within(self._port.send(sends)) if sends else {}
        state = self._state_topic
        kept = {state: ends[state, self.partition]} if state and (state, self.partition) in ends else {}
        if offsets or kept:
            await self._within(self._port.send_offsets({**offsets, **kept}))
            await self._make_sure()
        await self._within(self._port.commit())
        self._progress = True
        self._watch.committed(self.name, work, loop.time() - began, offsets)
        if receipted != self._receipted:
            self._receipted = receipted
            self._watch.receipt(self.name, receipted[1], written)

    async def _make_sure(self) -> None:
        """In the first transaction after a start, ask once more for what is committed.

        INVARIANT (exactly once): a group coordinator that is cut off from its cluster, and does not know it, tells old
        offsets. The one that has taken ours leads, or it could not have; and since the fence nobody else commits.
        """
        if self._told is not None:
            if await self._within(self._port.committed()) != self._told:
                raise PortError("the committed offsets are not those of the start")
            self._told = None

    def _receipt(self, through: int) -> Output:
        policy = self._plan.policy
        receipt = Receipt(policy.topic("consents"), self.partition, through, self._plan.name)
        return Output(policy.topic("receipts"), b"%d" % self.partition, _encode(receipt), [], None)

    async def _skip(self, gone: OffsetsGone) -> None:
        """Go on behind what nobody can read, and leave a record of it."""
        if isinstance(gone, Unreadable):
            if self._broken.get(gone.topic) != gone.position:
                # It may have been broken on its way: fetch it once more before it is given up.
                self._broken[gone.topic] = gone.position
                raise gone
            reason, on = Reason.UNREADABLE, gone.after
        else:
            reason, on = Reason.OUT_OF_RANGE, await self._within(self._port.first_offset(gone.topic))
            if on <= gone.position:
                # INVARIANT (exactly once): never back. A leader that is cut off does not have the newest offsets; and
                # of a topic made anew Kafka has forgotten the group's offsets: the truth is what is committed.
                log.error("lane %s: %s ends before offset %d: starting again", self.name, gone.topic, gone.position)
                raise gone
        log.error("lane %s: %s: %s from offset %d to %d", self.name, gone.topic, reason, gone.position, on)
        topic = self._plan.policy.topic("quarantine")
        where = Coordinates(gone.topic, self.partition, gone.position)
        record = QuarantineRecord(where, reason.value, self._plan.name, "absent", 0, to_offset=on)
        kind, outputs, *_ = quarantined(topic, record, reason)
        passed: dict[tuple[str, ...], int] = {
            (kind, source.name, "", reason): on - gone.position
            for source in self._plan.sources
            if gone.topic in (source.topic, source.raw_topic)
        }
        await self._commit(Work({(topic, self.partition): list(outputs)}, passed), {gone.topic: on})
        await self._within(self._port.seek({gone.topic: on}))

    async def _within(self, step: Awaitable[T]) -> T:
        """Bound one step. Its result is unknown after a time-out, so that is a failure like any other."""
        try:
            # Not `wait_for`: in Python 3.11 it may swallow a cancellation that comes as the step ends.
            async with asyncio.timeout(self._settings.deadline):
                return await step
        except TimeoutError as error:
            raise PortError("a step took too long") from error

    def _become(self, state: LaneState, why: str = "") -> None:
        if state is not self.state:
            self.state = state
            log.info("lane %s: %s%s", self.name, state, f" ({why})" if why else "")
            self._watch.state(self.name, state)
