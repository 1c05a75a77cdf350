"""The laws of the fold of consents: whatever arrives, in whatever order, nobody is allowed more than they said.

A record that can be read counts by its version: order, repeats and gaps do not matter. A record that cannot be read
counts by where it stands: it denies until a version arrives that is higher than all that came before it. The state
machine at the end plays everything that can happen to a partition against `tests.model`, which keeps the whole history
and folds it anew for each question.
"""

import json
from itertools import permutations

from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.consent import (
    BARRIER,
    FOREVER,
    RUNGS,
    Consent,
    Consents,
    Grant,
    Refusal,
    Rung,
    rule_1,
    stricter,
)
from streams.event import RawEvent
from streams.pipeline import Place, process
from tests import model
from tests.strategies import (
    GRANTED,
    NOW,
    PURPOSES,
    SECRET,
    broken_consents,
    compiled,
    generous,
    readable_consents,
    recent,
    write,
)

Values = list[bytes | None]

records_of_ana = readable_consents("ana").map(lambda record: json.dumps(record).encode())
anything_of_ana = st.one_of(records_of_ana, records_of_ana, broken_consents("ana"))


def state(values: Values) -> Consent:
    """Return what is in force for Ana after these records. There must be one."""
    consent = state_or_none(values)
    assert consent is not None
    return consent


def state_or_none(values: Values) -> Consent | None:
    consents = Consents()
    for value in values:
        consents.apply(b"ana", value)
    return consents.of(b"ana")


def version_of(value: bytes | None) -> int:
    """Return the version of a record, -1 if it cannot be read."""
    said = model.read_consent(value, "ana")
    return -1 if said is None else said[0]


def allowed(consent: Consent | None, purpose: str, recorded: int, now: int) -> Rung:
    """Return the highest rung that a purpose may have; NOTHING where it is refused."""
    if consent is None or not consent.readable:
        return Rung.NOTHING
    rung = rule_1(consent.grants.get(purpose), recorded, now, 0)
    return Rung.NOTHING if isinstance(rung, Refusal) else rung


moments_in_time = st.tuples(recent, recent)


def allows_no_more(one: Consent | None, other: Consent | None, recorded: int, now: int) -> bool:
    """Tell whether `one` allows no purpose a higher rung than `other` does, at a moment."""
    return all(allowed(one, name, recorded, now) <= allowed(other, name, recorded, now) for name in PURPOSES)


# --- records that can be read: order, repeats and gaps do not matter --------------------------------------------------


@given(st.lists(records_of_ana, min_size=1, max_size=4))
def test_any_order_gives_the_same(values: Values) -> None:
    first = state(values)
    assert all(state(list(order)) == first for order in permutations(values))


@given(st.lists(records_of_ana, min_size=1, max_size=6), st.data())
def test_repeats_of_what_can_be_read_are_harmless(values: Values, data: st.DataObject) -> None:
    """However often a record comes, and however late."""
    repeated = list(values)
    for value in data.draw(st.lists(st.sampled_from(values), max_size=4)):
        repeated.insert(data.draw(st.integers(0, len(repeated))), value)
    assert state(repeated) == state(values)


@given(st.lists(anything_of_ana, min_size=1, max_size=5), st.data())
def test_a_repeat_right_away_is_harmless(values: Values, data: st.DataObject) -> None:
    """As a client that asks again may get it; also of what cannot be read."""
    spot = data.draw(st.integers(0, len(values) - 1))
    assert state([*values[: spot + 1], values[spot], *values[spot + 1 :]]) == state(values)


@given(st.lists(anything_of_ana, min_size=1, max_size=6), records_of_ana, st.data())
def test_version_wins_and_not_offset(values: Values, older: bytes, data: st.DataObject) -> None:
    """A lower version than the highest changes nothing, wherever it stands: an old grant cannot be replayed."""
    highest = max(map(version_of, values))
    if version_of(older) < highest:
        spot = data.draw(st.integers(0, len(values)))
        assert state([*values[:spot], older, *values[spot:]]) == state(values)
    # And where the highest version stands does not matter, as long as nothing unreadable stands there too.
    readable = [value for value in values if version_of(value) >= 0]
    if readable:
        assert state(readable).version == max(map(version_of, readable))


@given(st.lists(anything_of_ana, min_size=1, max_size=6), st.data())
def test_compaction_changes_nothing(values: Values, data: st.DataObject) -> None:
    """Compaction keeps at least a key's last record. Where a person's versions rise along the log, nothing is lost.

    Only there: it goes by offset. An older version that is written after a newer one outlives it.
    """
    rising = [numbered(value, version) for version, value in enumerate(values)]
    kept = [value for value in rising[:-1] if data.draw(st.booleans())] + rising[-1:]
    compacted, whole = state(kept), state(rising)
    event(f"{len(values) - len(kept)} gone")
    assert (compacted.grants, compacted.readable) == (whole.grants, whole.readable)
    assert not whole.readable or compacted.version == whole.version


def numbered(value: bytes | None, version: int) -> bytes | None:
    """Return a record with another version; one that cannot be read stays as it is."""
    if version_of(value) < 0:
        return value
    return json.dumps(json.loads(value or b"") | {"version": version}).encode()


# --- equal versions: the stricter -------------------------------------------------------------------------------------


@given(records_of_ana, records_of_ana)
def test_equal_version_is_the_stricter(one: bytes, two: bytes) -> None:
    both = state([one, numbered(two, version_of(one))])
    for purpose in PURPOSES:
        said = [json.loads(value)["purposes"].get(purpose) for value in (one, two)]
        grant = both.grants.get(purpose)
        if None in said:
            assert grant is None
        else:
            assert grant is not None
            assert grant.rung == min(RUNGS[each["rung"]] for each in said)
            alone = [state([value]).grants[purpose] for value in (one, two)]
            assert grant.since == max(each.since for each in alone)
            assert grant.until == min(each.until for each in alone)


some_grants = st.builds(Grant, st.sampled_from(Rung), st.integers(0, 3), st.one_of(st.integers(0, 3), st.just(FOREVER)))
consents_of_one_version = st.one_of(
    st.builds(Consent, st.just(1), st.dictionaries(st.sampled_from(PURPOSES), some_grants), st.just(True)),
    st.just(Consent(1, {}, readable=False)),
)


@given(consents_of_one_version, consents_of_one_version, consents_of_one_version)
def test_stricter_is_a_meet(one: Consent, two: Consent, three: Consent) -> None:
    """Commutative, associative, idempotent; below both, and nothing that is below both is above it."""
    assert stricter(one, two) == stricter(two, one)
    assert stricter(one, stricter(two, three)) == stricter(stricter(one, two), three)
    assert stricter(one, one) == one
    both = stricter(one, two)
    assert stricter(both, one) == stricter(both, two) == both
    if stricter(three, one) == stricter(three, two) == three:
        assert stricter(three, both) == three


# --- what cannot be read ----------------------------------------------------------------------------------------------


@given(st.lists(records_of_ana, max_size=3), broken_consents("ana"), st.lists(records_of_ana, max_size=3))
def test_unreadable_denies_until_a_higher_version(before: Values, broken: bytes | None, after: Values) -> None:
    known = max(map(version_of, before), default=-1)
    higher = [version_of(value) for value in after if version_of(value) > known]
    consent = state([*before, broken, *after])
    assert consent.readable == bool(higher)
    assert consent.readable or consent.grants == {}
    assert consent.version == max([known, *higher])


@given(st.lists(records_of_ana, max_size=3))
@example([])
def test_a_tombstone_denies(before: Values) -> None:
    """A withdrawal is a value. A null value is a record that cannot be read, and never "nothing known"."""
    consent = state([*before, None])
    assert not consent.readable
    assert consent.grants == {}


@given(st.lists(anything_of_ana, max_size=4), broken_consents("ana"), st.data())
def test_what_cannot_be_read_never_allows_more(values: Values, broken: bytes | None, data: st.DataObject) -> None:
    """Wherever it stands among the others."""
    spot = data.draw(st.integers(0, len(values)))
    with_it = state([*values[:spot], broken, *values[spot:]])
    assert allows_no_more(with_it, state_or_none(values), *data.draw(moments_in_time))


# --- never more than was said -----------------------------------------------------------------------------------------


@given(st.lists(anything_of_ana, min_size=1, max_size=6), moments_in_time)
def test_never_more_than_any_record_of_the_newest_version_allows(values: Values, moments: tuple[int, int]) -> None:
    """A fold that has missed nothing that was acknowledged allows no more than the newest acknowledged record."""
    consent = state(values)
    newest = [value for value in values if version_of(value) == max(map(version_of, values)) >= 0]
    assert newest or not consent.readable
    for value in newest:
        assert allows_no_more(consent, state([value]), *moments)


@given(st.lists(anything_of_ana, min_size=1, max_size=5), anything_of_ana, moments_in_time)
def test_only_a_higher_version_allows_more(values: Values, one_more: bytes | None, moments: tuple[int, int]) -> None:
    before = state(values)
    after = state([*values, one_more])
    if not allows_no_more(after, before, *moments):
        assert version_of(one_more) > before.version
        assert after == state([one_more])


@given(st.lists(anything_of_ana, max_size=4), st.lists(anything_of_ana, max_size=4), anything_of_ana)
def test_nobody_is_touched_by_the_records_of_another(ana: Values, more: Values, other: bytes | None) -> None:
    """Not even by records about Ana under another's key: these deny that other."""
    consents = Consents()
    for value in ana:
        consents.apply(b"ana", value)
    for value in [*more, other]:
        consents.apply(b"ben", value)
    assert consents.of(b"ana") == state_or_none(ana)
    assert consents.of(b"ben") == Consent(-1, {}, readable=False)


# --- everything that can happen to a partition ------------------------------------------------------------------------

POLICY = {
    "policy": "test",
    "version": 3,
    "sources": {
        "web": {"topic": "raw", "own": True, "subject": "who", "type": "what", "clock_skew": "2s"},
    },
    "purposes": {
        name: {"benefit": "Something for you", "topic": f"out.{name}", "rung": rung, "rotate": "30d", "lifetime": "1d"}
        for name, rung in zip(PURPOSES, ["anonymous", "pseudonymous", "identified", "identified"], strict=True)
    },
    "events": {"viewed": {"a": {"is": "user.behavior", "for": "all", "as": {"anonymous": "keep"}}}},
}
RESIDENTS = ["ana", "ben", "Zoë"]
STRANGERS = ["eve", "*"]
"""People whose consent lies on another partition."""


def owns(key: bytes) -> bool:
    return key.decode() not in STRANGERS


class Partition(RuleBasedStateMachine):
    """One partition of the consent topic, read by one fold that lives long, and by the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.consents = Consents(owns)
        self.log: model.History = []
        """what has been read since the fold was last cleared"""
        self.rejected = 0

    def read(self, key: bytes | None, value: bytes | None) -> None:
        """Let both read a record."""
        self.consents.apply(key, value)
        if key == BARRIER:
            return
        if key is not None and model.is_utf8(key) and not owns(key):
            value = None  # What lies on the wrong partition counts as what cannot be read.
        self.log.append((key, value))
        readable = key is not None and model.is_utf8(key) and model.read_consent(value, key.decode()) is not None
        self.rejected += not readable

    @initialize(person=st.sampled_from(RESIDENTS))
    def somebody_allows_everything(self, person: str) -> None:
        self.read(*generous(person, PURPOSES, version=1))

    @rule(person=st.sampled_from([*RESIDENTS, *RESIDENTS, *STRANGERS]), data=st.data())
    def somebody_says_something(self, person: str, data: st.DataObject) -> None:
        self.read(person.encode(), json.dumps(data.draw(readable_consents(person))).encode())

    @rule(person=st.sampled_from([*RESIDENTS, *RESIDENTS, *STRANGERS]), data=st.data())
    def something_cannot_be_read(self, person: str, data: st.DataObject) -> None:
        self.read(person.encode(), data.draw(broken_consents(person)))

    @rule(person=st.sampled_from(RESIDENTS), purposes=st.lists(st.sampled_from(PURPOSES)))
    def somebody_takes_all_back_but_a_few(self, person: str, purposes: list[str]) -> None:
        known = self.consents.of(person.encode())
        self.read(*generous(person, purposes, version=(0 if known is None else known.version + 1)))
        after = self.consents.of(person.encode())
        assert after is not None
        assert set(after.grants) == set(purposes)

    @rule(data=st.data())
    def an_old_record_comes_again(self, data: st.DataObject) -> None:
        if self.log:
            self.read(*data.draw(st.sampled_from(self.log)))

    @rule(value=st.one_of(st.none(), records_of_ana))
    def a_barrier_is_written(self, value: bytes | None) -> None:
        self.read(BARRIER, value)

    @rule(key=st.sampled_from([None, b"\xff", b"ana\xc3"]), value=st.one_of(st.none(), records_of_ana))
    def a_key_cannot_be_read(self, key: bytes | None, value: bytes | None) -> None:
        self.read(key, value)

    @rule()
    def the_topic_is_read_anew(self) -> None:
        of = self.consents.of
        self.consents.clear()
        self.log = []
        assert of(b"ana") is None
        assert of == self.consents.of

    @rule()
    def another_worker_reads_the_same(self) -> None:
        other = Consents(owns)
        for key, value in self.log:
            other.apply(key, value)
        assert other.blocked == self.consents.blocked
        assert all(other.of(person.encode()) == self.consents.of(person.encode()) for person in RESIDENTS + STRANGERS)

    @rule()
    def rejected_records_are_counted(self) -> None:
        assert self.consents.take_rejected() == self.rejected
        self.rejected = 0

    @rule(
        person=st.sampled_from([*RESIDENTS, *RESIDENTS, *STRANGERS]),
        recorded=st.one_of(recent, st.just(GRANTED + 2_000)),
        now=st.one_of(recent, st.just(NOW)),
    )
    def an_event_comes(self, person: str, recorded: int, now: int) -> None:
        plan = compiled(POLICY)
        raw = write({"who": person, "what": "viewed", "a": 1})
        outcome = process(
            RawEvent(7, recorded, person.encode(), raw), Place(plan.sources[0], 0), self.consents, plan, now
        )
        event(f"{outcome.kind} {outcome.reason or ''}")
        if outcome.reason == "wrong_partition":
            assert person in STRANGERS
            return
        expected = model.predict(POLICY, SECRET, model.Event(raw, person.encode(), recorded, "web"), self.log, now)
        assert (outcome.kind, outcome.reason, outcome.refusals) == (expected.kind, expected.reason, expected.refusals)
        assert [output.topic for output in outcome.outputs] == [output.topic for output in expected.outputs]

    @invariant()
    def what_is_in_force_is_what_the_history_says(self) -> None:
        assert self.consents.blocked == any(key is None or not model.is_utf8(key) for key, _ in self.log)
        known = {key for key, _ in self.log if key is not None and model.is_utf8(key)}
        assert len(self.consents) == len(known)
        for person in RESIDENTS + STRANGERS:
            assert as_the_oracle_has_it(self.consents.of(person.encode())) == model.consent_in_force(self.log, person)
        assert self.consents.of(BARRIER) is None


def as_the_oracle_has_it(consent: Consent | None) -> model.Consent | None:
    """Return a consent in the words of the oracle."""
    if consent is None:
        return None
    grants = {
        name: model.Grant(int(grant.rung), grant.since, float("inf") if grant.until == FOREVER else grant.until)
        for name, grant in consent.grants.items()
    }
    return model.Consent(consent.version, grants if consent.readable else None)


TestPartition = Partition.TestCase
TestPartition.settings = settings(stateful_step_count=30)
