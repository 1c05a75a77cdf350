"""The file edge: lines in, files out, and what a file of consents means."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.consent import Consents
from streams.errors import SettingsError
from streams.files import OutputFiles, choose_source, file_place, filter_lines, line_event, output_names
from streams.keys import MasterKey
from streams.lines import FileConsents, TooLong, open_input, read_consents, read_document, read_lines
from streams.pipeline import process
from streams.plan import Plan, compile_plan
from streams.policy import load_policy, parse_policy

ROOT = Path(__file__).parent.parent
RETAIL = ROOT / "schemas" / "policies" / "retail.yaml"
NOW = 1_772_400_000_000  # 2026-03-01T21:20:00Z
LINE_SIZE = 64


def plan_of(file: Path = RETAIL) -> Plan:
    return compile_plan(load_policy(file), MasterKey(bytes(32)), str(file))


def changed(**replaced: str) -> Plan:
    text = RETAIL.read_text()
    for old, new in replaced.items():
        old = {"topic": "topic: service.orders", "time": "    time: occurred_at\n"}.get(old, old)
        assert old in text
        text = text.replace(old, new)
    return compile_plan(parse_policy(text.encode()), MasterKey(bytes(32)))


def purchase(customer: object = "17850", **more: Any) -> bytes:
    event = {
        "event_id": "e1",
        "type": "purchase",
        "occurred_at": "2026-03-01T09:30:00Z",
        "customer": customer,
        "invoice": "536365",
        "country": "France",
        "item": {"stock_code": "85123A", "description": "A LANTERN", "quantity": 6, "unit_price": 2.55},
    }
    return json.dumps(event | more).encode()


def consent(subject: object = "17850", version: object = 1, rung: str = "identified", **more: Any) -> bytes:
    grant = {"rung": rung, "since": "2026-01-01T00:00:00Z"}
    return json.dumps({"subject": subject, "version": version, "purposes": {"service.orders": grant}} | more).encode()


def folded(*lines: bytes | TooLong) -> FileConsents:
    consents = FileConsents()
    for line in lines:
        consents.apply(line)
    return consents


def run(tmp_path: Path, consents: Consents, *lines: bytes | TooLong, plan: Plan | None = None) -> dict[str, Any]:
    plan = plan or plan_of()
    place = file_place(plan, plan.sources[0])
    with OutputFiles(tmp_path / "out", output_names(plan)) as files:
        return filter_lines(plan, place, consents, lines, files, lambda: NOW).as_dict()


# Lines


@settings(deadline=None)
@given(st.lists(st.binary(max_size=LINE_SIZE).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))))
def test_lines_come_back_as_they_were_written(lines: list[bytes]) -> None:
    for end in (b"\n", b"\r\n"):
        text = b"".join(line + end for line in lines)
        assert list(read_lines(io.BytesIO(text), "events", longest=LINE_SIZE)) == lines
    if lines and lines[-1]:
        assert list(read_lines(io.BytesIO(b"\n".join(lines)), "events", longest=LINE_SIZE)) == lines


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b".").replace(b"\r", b"."))))
def test_a_long_line_is_counted_and_its_neighbours_stay(lines: list[bytes]) -> None:
    text = b"".join(line + b"\n" for line in lines)
    wanted = [line if len(line) <= 10 else TooLong(len(line)) for line in lines]
    assert list(read_lines(io.BytesIO(text), "events", longest=10)) == wanted


def test_a_line_without_end_is_not_held() -> None:
    class Endless(io.RawIOBase):
        left = 64 << 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            count = min(len(buffer), self.left)
            buffer[:count] = b"x" * count
            self.left -= count
            return count

    tracemalloc.start()
    try:
        assert list(read_lines(io.BufferedReader(Endless()), "events", longest=1 << 20)) == [TooLong(64 << 20)]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_packed_files_are_unpacked_and_broken_ones_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"{}\n" * 1000)
    (tmp_path / "events.ndjson.gz").write_bytes(whole)
    with open_input(tmp_path / "events.ndjson.gz") as (stream, position):
        assert len(list(read_lines(stream, "events"))) == 1000
        assert position is not None
        assert position() == len(whole)
    for name, broken in {"cut": whole[:-20], "other": b"{}\n", "bits": whole[:12] + b"\xff\xff" + whole[14:]}.items():
        (tmp_path / f"{name}.gz").write_bytes(broken)
        with (
            open_input(tmp_path / f"{name}.gz") as (stream, _),
            pytest.raises(SettingsError, match="cannot be read to its end"),
        ):
            list(read_lines(stream, name))


def test_one_document_may_stretch_over_lines_and_several_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_text('{\n  "type": "purchase"\n}\n')
    assert json.loads(read_document(file)) == {"type": "purchase"}
    file.write_text('{"type": "a"}\n{"type": "b"}\n')
    with pytest.raises(SettingsError, match="head -n 1"):
        read_document(file)


# Consents


def test_a_consent_that_cannot_be_read_denies_its_subject_only() -> None:
    consents = folded(consent("ana"), consent("ben", version="one"), consent("eve", colour="red"))
    states = {name: consents.consents.of(name.encode()) for name in ("ana", "ben", "eve")}
    assert [state and state.readable for state in states.values()] == [True, False, False]
    counts = {"lines": 3, "subjects": 3, "unreadable": 2, "blocked": False, "blocked_by_line": None}
    assert consents.as_dict() == counts


def test_a_number_as_subject_denies_the_person_whose_events_say_it_so() -> None:
    state = folded(consent(17850)).consents.of(b"17850")
    assert state is not None
    assert not state.readable


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"\xff",
        b"[]",
        b'[["subject", "ana"]]',
        b"{}",
        b'{"subject": null}',
        b'{"subject": true}',
        b'{"subject": ["ana"]}',
        b'{"subject": "ana", "subject": "ben"}',
        b'{"subject": "ana", "s\\u0075bject": "ben", "version": 1, "purposes": {}}',
        b'{"subject": "\\ud800", "version": 1}',
        b'{"subject": "ana"',
        b"[" * 100_000,
        TooLong(1 << 30),
    ],
)
def test_a_consent_whose_subject_cannot_be_told_denies_everyone(line: bytes | TooLong) -> None:
    consents = folded(consent("ana"), line, consent("ben"))
    assert consents.consents.blocked
    assert consents.as_dict()["blocked_by_line"] == 2


@settings(deadline=None)
@given(st.lists(st.binary() | st.just(consent("ana")) | st.just(consent("ben", rung="nothing")), max_size=8))
def test_consent_lines_never_raise_and_are_all_counted(lines: list[bytes]) -> None:
    consents = folded(*lines)
    assert consents.lines == len(lines)
    # Whatever else the file holds: a line that is no record denies somebody, or everybody.
    readable = sum(1 for line in lines if line in (consent("ana"), consent("ben", rung="nothing")))
    assert consents.unreadable >= len(lines) - readable - lines.count(b"")


def test_consents_are_folded_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "consents.ndjson"
    file.write_bytes(consent(version=2, rung="nothing") + b"\n" + consent(version=1) + b"\n")
    state = read_consents(file).consents.of(b"17850")
    assert state is not None
    assert (state.version, state.grants["service.orders"].rung) == (2, 0)


# Filtering


def test_files_hold_the_bytes_that_the_pipeline_publishes(tmp_path: Path) -> None:
    lines = [purchase(), purchase("nobody"), b"", b"{", purchase(item=3), purchase(), purchase(occurred_at="today")]
    consents = folded(consent()).consents
    counts = run(tmp_path, consents, *lines)
    plan = plan_of()
    place = file_place(plan, plan.sources[0])
    wanted: dict[str, list[bytes]] = {name: [] for name in output_names(plan).values()}
    for offset, line in enumerate(lines):
        for output in process(line_event(line, offset, NOW), place, consents, plan, NOW).outputs:
            wanted[output_names(plan)[output.topic]].append(output.value)
    found = {file.name: file.read_bytes().splitlines() for file in (tmp_path / "out").iterdir()}
    assert found == wanted
    assert counts == {
        "in": 7,
        "published": 2,
        "suppressed": 1,
        "quarantined": 4,
        "outputs": {"personalization.recommendations": 0, "shop.assortment": 0, "service.orders": 2},
        "reasons": {"bad_time": 1, "malformed": 1, "no_consent": 1, "no_value": 1, "wrong_shape": 1},
        "refusals": {
            "personalization.recommendations": {"not_allowed": 2},
            "shop.assortment": {"not_allowed": 2},
        },
    }
    places = [json.loads(line)["source"] for line in found["quarantine.ndjson"]]
    assert places == [{"topic": "shop.purchases.raw", "partition": 0, "offset": offset} for offset in (2, 3, 4, 6)]


event_lines = st.one_of(
    st.binary(max_size=40),
    st.builds(purchase, st.sampled_from(["17850", 17850, "ben", None, "", True])),
    st.builds(purchase, occurred_at=st.sampled_from(["2025-12-31T23:59:59Z", "2030-01-01T00:00:00Z", 3, None])),
    st.builds(TooLong, st.integers(1 << 24, 1 << 40)),
)


@settings(deadline=None)
@given(st.lists(event_lines, max_size=6), st.lists(st.sampled_from([consent(), consent("ben"), b"?"]), max_size=3))
def test_every_line_has_one_outcome(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes | TooLong], consents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("filter")
    counts = run(folder, folded(*consents).consents, *lines)
    assert counts["in"] == len(lines) == counts["published"] + counts["suppressed"] + counts["quarantined"]
    assert sum(counts["reasons"].values()) == counts["suppressed"] + counts["quarantined"]
    sizes = {file.name: len(file.read_bytes().splitlines()) for file in (folder / "out").iterdir()}
    assert sizes.pop("quarantine.ndjson") == counts["quarantined"]
    assert sizes == {f"{topic}.ndjson": count for topic, count in counts["outputs"].items()}


def test_blocked_consents_publish_nothing(tmp_path: Path) -> None:
    counts = run(tmp_path, folded(consent(), b"?").consents, purchase())
    assert counts["reasons"] == {"partition_blocked": 1}


def test_a_line_too_long_is_quarantined_with_its_place_and_size(tmp_path: Path) -> None:
    run(tmp_path, Consents(), b"{}", TooLong(99))
    record = json.loads((tmp_path / "out" / "quarantine.ndjson").read_bytes().splitlines()[1])
    assert (record["reason"], record["source"]["offset"], record["size"]) == ("malformed", 1, 99)


def test_only_the_events_own_time_and_the_clock_count(tmp_path: Path) -> None:
    since = {"service.orders": {"rung": "identified", "since": "2026-02-01T00:00:00Z"}}
    early, late = purchase(occurred_at="2026-01-31T23:59:59Z"), purchase(occurred_at="2026-02-01T00:00:00Z")
    counts = run(tmp_path, folded(consent(purposes=since)).consents, early, late)
    assert (counts["published"], counts["reasons"]) == (1, {"recorded_before_consent": 1})


@pytest.mark.parametrize(("end", "published"), [("2026-03-01T21:20:00Z", 0), ("2026-03-01T21:20:01Z", 1)])
def test_a_consent_with_an_end_holds_until_then(tmp_path: Path, end: str, published: int) -> None:
    grant = {"rung": "identified", "since": "2026-01-01T00:00:00Z", "until": end}
    counts = run(tmp_path, folded(consent(purposes={"service.orders": grant})).consents, purchase())
    assert counts["published"] == published


def test_a_source_without_time_is_refused() -> None:
    plan = changed(time="")
    with pytest.raises(SettingsError, match=r"sources\.till has no `time`"):
        file_place(plan, plan.sources[0])


def test_the_source_is_named_where_there_are_several() -> None:
    plan = plan_of()
    assert choose_source(plan, None) is choose_source(plan, "till")
    with pytest.raises(SettingsError, match="did you mean `till`"):
        choose_source(plan, "tills")
    text = RETAIL.read_text().replace(
        "purposes:\n",
        "  web: {topic: web, own: true, subject: customer, type: type, time: occurred_at}\n\npurposes:\n",
    )
    several = compile_plan(parse_policy(text.encode()), MasterKey(bytes(32)))
    assert choose_source(several, "web").topic == "web"
    with pytest.raises(SettingsError, match=r"--source till\|web"):
        choose_source(several, None)


def test_two_topics_never_share_a_file() -> None:
    with pytest.raises(SettingsError, match=r"quarantine\.ndjson"):
        output_names(changed(topic="topic: Quarantine"))


# Output files


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        with OutputFiles(folder, {"a": "a.ndjson"}) as files:
            files.write("a", b"{}")
            raise KeyboardInterrupt

    for there in (False, True):
        folder = tmp_path / str(there) / "out"
        if there:
            folder.mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt):
            interrupted(folder)
        assert folder.exists() is there
        assert not there or list(folder.iterdir()) == []


def test_files_that_are_there_stay_unless_they_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "b.ndjson").write_text("mine")
    names = {"a": "a.ndjson", "b": "b.ndjson"}
    with pytest.raises(SettingsError, match="--force"):
        OutputFiles(tmp_path, names).__enter__()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"b.ndjson": "mine"}
    with OutputFiles(tmp_path, names, replace=True) as files:
        files.write("a", b"{}")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.ndjson": "{}\n", "b.ndjson": ""}


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        OutputFiles(tmp_path / "file", {"a": "a.ndjson"}).__enter__()
    with pytest.raises(SettingsError, match="cannot be written"):
        OutputFiles(tmp_path / "out", {"a": f"{'a' * 300}.ndjson"}).__enter__()
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(*lines: bytes) -> None:
        with OutputFiles(tmp_path / "out", {"a": "a.ndjson"}) as files:
            files._files["a"].close()
            files._files["a"] = Path("/dev/full").open("wb")  # noqa: SIM115 - closed by the object under test
            for line in lines:
                files.write("a", line)

    for lines in ([b"short"], [b"long" * 10_000]):
        with pytest.raises(SettingsError, match="No space left"):
            fill(*lines)
        assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "consents.ndjson").write_bytes(consent() + b"\n")
    MasterKey.create(tmp_path / "key")
    options = {"policy": RETAIL, "consents": "consents.ndjson", "events": "-", "out": "out", "key-file": "key"}
    command = [sys.executable, "-m", "streams", "filter", *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background of a shell ignores it, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdin is not None
        # More than a pipe holds: once it is taken, the run is under way.
        process.stdin.write((purchase() + b"\n") * 2000)
        process.stdin.flush()
        assert list((tmp_path / "out").iterdir()) != []
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert not (tmp_path / "out").exists()
