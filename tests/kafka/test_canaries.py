"""No canary leaves: workers that tell all they can, everything that befalls them, and then a look everywhere.

One scene is played on a broker of our own, with workers at log level DEBUG, in Python's development mode and asyncio's
debug mode: events with canaries in every field, key and header, poison of every kind of the table, consents with
canaries; workers killed, fenced, paused, ended, one that ends by a bug whose message quotes an event; the broker
stopped and started. Each test then looks at one thing that somebody could read. The last test plants leaks, and sees
them.
"""

import base64
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streams import cli
from streams.embedded import ApacheKafka, apache_kafka, java_and_maven
from tests.inputs import CANARY, CASES, GRANT, SHARED, Said, place_of, policy, said
from tests.kafka.brokers import SECONDS, Record, ToSend, admin_client, produce, read_all, wait_until
from tests.kafka.leaks import canary, document, found, found_in_files, found_in_texts, of_process, of_records
from tests.kafka.test_inputs_broker import write_consents
from tests.kafka.worker import PARTITIONS, ROOT, Deployment, Worker, deployed

PEOPLE = [canary(f"subject{number}") for number in range(8)]
ALL = f'{GRANT},"contact":{GRANT[6:].replace("pseudonymous", "identified")},"stats":{GRANT[6:]}'
ON_PURPOSE = {f"hunt.{topic}-{number}" for topic in ("shop.raw", "shop.consents") for number in range(PARTITIONS)}
"""The folders of what was sent to the broker."""
QUICK = {"group.min.session.timeout.ms": "1000", "offsets.topic.num.partitions": "1"}
TOLD = {"email", *(person.partition("-")[2] for person in PEOPLE)}
"""What the identified purpose may show, by the policy: who it is, and their address."""


def hunted(prefix: str) -> dict[str, Any]:
    """The policy of the table, with an identified and an anonymous purpose beside."""
    made = policy(prefix)
    ads = made["purposes"]["ads"]
    made["purposes"]["contact"] = ads | {"topic": f"{prefix}shop.contact", "rung": "identified"}
    made["purposes"]["stats"] = ads | {"topic": f"{prefix}shop.stats", "rung": "anonymous"}
    fields = made["events"]["viewed"]
    fields["email"] = {"is": "user.contact.email", "for": ["contact"], "as": {"identified": "keep"}}
    fields["id"] = {"is": "system.operations", "for": ["ads"], "as": {"pseudonymous": "pseudonym"}}
    return made


def documents(count: int) -> list[ToSend]:
    """Events of all the people, with canaries everywhere, in keys and headers too."""
    headers = [(canary("headername"), canary("headervalue").encode()), ("celosia-source", canary("forged").encode())]
    # Python shortens what it shows of a record, and leaves its end.
    headers.append(("", CANARY.encode()))
    return [
        ToSend(who.encode(), json.dumps(document(who)).encode(), headers, place_of(who.encode()))
        for who in (PEOPLE[number % len(PEOPLE)] for number in range(count))
    ]


def consents() -> list[Said]:
    """Consents of the people, and those of the table; some that name canaries where no name belongs."""
    allowed = [Said(said(1, ALL, who), who.encode()) for who in PEOPLE]
    odd = canary("consent")
    strange = [said(1, f'"{odd}":{GRANT[6:]}', odd), said(2, GRANT, odd)[:-1] + b',"%s":1}' % odd.encode()]
    of_cases = [record for case in CASES for record in case.said if not record.transaction]
    return [*SHARED, *allowed, *(Said(value, odd.encode()) for value in strange), *of_cases]


@dataclass
class Scene:
    """What was there to be seen."""

    shop: Deployment
    processes: set[str] = field(default_factory=set)
    """what was found in command lines and environments while processes ran"""
    pages: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """what commands wrote"""
    groups: list[str] = field(default_factory=list)
    disk: dict[str, set[str]] = field(default_factory=dict)
    """what was found on the broker's disk"""

    def worker(self, script: str | None = None) -> Worker:
        """Start a worker that says all it can, with home and temporary folder below the deployment's folder."""
        home = self.shop.home / "home"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        surroundings = {"HOME": home, "TMPDIR": home / "tmp", "PYTHONASYNCIODEBUG": 1}
        surroundings |= {"CELOSIA_LOG_LEVEL": "debug", "CELOSIA_SESSION_TIMEOUT_MS": 1500}
        loud = ["env", *(f"{name}={value}" for name, value in surroundings.items())]
        loud += [sys.executable, "-X", "dev", "-X", "faulthandler"]
        run = ["-m", "streams", "run"] if script is None else ["-c", script + RUN]
        return self.shop.start(command=[*loud, *run])

    def look(self, worker: Worker) -> None:
        """Look at a worker's pages and at what the process list shows of it."""
        self.processes |= of_process(worker.pid)
        for page in ("/metrics", "/healthz", "/readyz", "/", "/nothing"):
            self.pages[f"{worker.pid}{page}"] = worker.page(page)[1]

    def run(self, *command: str, input: bytes = b"") -> None:
        """Run a command as a process, look at it in the process list, and keep what it says."""
        full = [sys.executable, "-X", "dev", "-m", "streams", *command]
        with subprocess.Popen(
            full, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            self.processes |= of_process(process.pid)
            told, _ = process.communicate(input, timeout=SECONDS)
        self.said[" ".join(command[:1])] = told.decode(errors="replace") + f"\nexit code {process.returncode}"


RUN = """
from streams.cli import main
main(["run"], prog_name="celosia")
"""
TALKS = """
import asyncio
new_event_loop = asyncio.new_event_loop
def new():
    loop = new_event_loop()
    loop.slow_callback_duration = 0.0
    return loop
asyncio.new_event_loop = new
"""
"""A worker whose event loop finds every callback slow, and says what it was."""
QUOTES = """
import streams.kafka.agents as agents
def bind(*_):
    def process(record):
        raise RuntimeError(record.value)
    return process
agents.bind = bind
"""
"""A worker with a bug whose message quotes the event."""


def play(scene: Scene, kafka: ApacheKafka) -> None:
    """Everything that can befall a worker, one after the other."""
    shop = scene.shop
    write_consents(shop, consents())
    first = scene.worker(TALKS)
    shop.wait_ready()
    poison = [case for case in CASES if len(repr(case)) < 900_000 and case.timestamp > 0]
    records = [ToSend(case.key, case.value, case.headers, case.partition, case.timestamp) for case in poison]
    produce(shop.bootstrap, shop.raw, records)
    produce(shop.bootstrap, shop.raw, documents(200))
    shop.wait_consumed()
    scene.look(first)
    # Killed while it works.
    busy = threading.Thread(target=produce, args=(shop.bootstrap, shop.raw, documents(1000)))
    before = sum(shop.committed(shop.raw).values())
    busy.start()
    wait_until(lambda: sum(shop.committed(shop.raw).values()) > before, "it works")
    first.kill()
    second = scene.worker()
    busy.join()
    shop.wait_ready()
    # Fenced, by a withdrawal.
    command = ["withdraw", "--bootstrap", shop.bootstrap, "--policy", str(shop.policy_file), "--group", shop.group]
    scene.run(*command, input=PEOPLE[0].encode() + b"\n")
    # Without a broker for a while.
    kafka.stop(1)
    wait_until(lambda: "WARNING aiokafka" in second.log or "ERROR aiokafka" in second.log, "it has noticed")
    kafka.start(1)
    wait_until(lambda: shop.committed(shop.raw) != dict.fromkeys(range(PARTITIONS), -1), "the broker is back")
    produce(shop.bootstrap, shop.raw, documents(100))
    shop.wait_consumed()
    # Paused until it is replaced.
    second.pause()
    third = scene.worker()
    wait_until(lambda: len(third.lanes()) == PARTITIONS and third.ready(), "the third has all lanes")
    produce(shop.bootstrap, shop.raw, documents(100))
    second.resume()
    shop.wait_ready()
    # A key that cannot be read denies a partition.
    unreadable = ToSend(b"\xff" + canary("unreadable").encode(), said(1, ALL, canary("unreadable")), partition=0)
    produce(shop.bootstrap, shop.consents, [unreadable])
    shop.wait_consumed()
    for worker in (second, third):
        scene.look(worker)
        scene.groups.append(described(shop))
        assert worker.terminate() == 0
    produce(shop.bootstrap, shop.raw, documents(len(PEOPLE)))
    broken = scene.worker(QUOTES)
    wait_until(lambda: not broken.running, "the bug ends it")
    assert "ended by RuntimeError: this is a bug" in broken.log


def described(shop: Deployment) -> str:
    """The group as any client may ask for it: members, their clients, hosts and assignments."""
    [future] = admin_client(shop.bootstrap).describe_consumer_groups([shop.group], request_timeout=SECONDS).values()
    group = future.result(SECONDS)
    members = [
        (member.member_id, member.client_id, member.host, member.group_instance_id, member.assignment.topic_partitions)
        for member in group.members
    ]
    assert members
    return repr((group.group_id, group.partition_assignor, group.coordinator, members))


@pytest.fixture(scope="module")
def kafka() -> Iterator[ApacheKafka]:
    if reason := java_and_maven():
        pytest.skip(reason)
    with apache_kafka(overrides=QUICK) as broker:
        yield broker


@pytest.fixture(scope="module")
def scene(kafka: ApacheKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with deployed(kafka.bootstrap, "hunt", hunted("hunt."), tmp_path_factory.mktemp("hunt")) as shop:
        for setting in ("retention.ms=-1", f"message.timestamp.after.max.ms={2**63 - 1}"):
            shop.set_config(shop.raw, setting)
        scene = Scene(shop)
        play(scene, kafka)
        scene.disk = found_in_files(kafka.log_dir(1), leave_out=ON_PURPOSE)
        yield scene


# --- what could be read -----------------------------------------------------------------------------------------------


def both(shop: Deployment, topic: str) -> list[Record]:
    """All records of a topic, those of transactions that were aborted too."""
    return read_all(shop.bootstrap, topic, "read_uncommitted")


def test_only_what_the_policy_says_is_in_the_outputs(scene: Scene) -> None:
    ads, contact, stats = (scene.shop.plan.purposes[name].topic for name in ("ads", "contact", "stats"))
    assert of_records(both(scene.shop, ads)) == set()
    assert of_records(both(scene.shop, stats)) == set()
    # Not only may it be there: it is, so the scene shows something.
    assert of_records(both(scene.shop, contact)) == TOLD
    for record in both(scene.shop, contact):
        assert found(record.key) | of_records([record._replace(key=None, value=None)]) <= TOLD - {"email"}
        value = json.loads(record.value or b"")
        assert found(json.dumps(value["_celosia"])) <= TOLD - {"email"}
        assert found(value.pop("email")) == {"email"}
        del value["_celosia"]
        assert found(json.dumps(value)) == set()


def test_nothing_is_in_quarantine_and_receipts(scene: Scene) -> None:
    quarantine = both(scene.shop, scene.shop.quarantine)
    assert len({json.loads(record.value or b"")["reason"] for record in quarantine}) > 9
    assert of_records(quarantine) == set()
    assert of_records(both(scene.shop, scene.shop.receipts)) == set()


def test_nothing_is_in_what_workers_say(scene: Scene) -> None:
    logs = {f"worker {number}": worker.log for number, worker in enumerate(scene.shop.workers)}
    for sign in ("celosia.lane: lane", "ERROR aiokafka", "ended by RuntimeError", "asyncio: Executing", "[Batch("):
        assert any(sign in log for log in logs.values()), sign
    assert found_in_texts(logs) == {}


def test_nothing_is_on_the_page_for_operators(scene: Scene) -> None:
    assert sum("celosia_events_total" in text for text in scene.pages.values()) >= 3
    assert found_in_texts(scene.pages) == {}


def test_nothing_is_in_the_list_of_processes(scene: Scene) -> None:
    assert scene.processes == set()


def test_nothing_is_in_the_group_and_in_the_transactions(scene: Scene) -> None:
    """Members, offsets and their metadata, transactional ids: as a client is told, and as the broker keeps them."""
    assert found_in_texts({str(number): text for number, text in enumerate(scene.groups)}) == {}
    kept = {topic: both(scene.shop, topic) for topic in ("__consumer_offsets", "__transaction_state")}
    assert all(kept.values())
    assert any(b"hunt-minimize-0" in (record.key or b"") for record in kept["__transaction_state"])
    assert {topic: of_records(records) for topic, records in kept.items()} == {topic: set() for topic in kept}


def test_nothing_is_on_the_disks(scene: Scene) -> None:
    """Of the worker: home, temporary files, folder. Of the broker: everything but what was sent to it."""
    assert found_in_files(scene.shop.home) == {}
    assert {name.split("/")[0].rpartition("-")[0] for name in scene.disk} == {"hunt.shop.contact"}
    assert set().union(*scene.disk.values()) == TOLD


def test_nothing_is_in_what_a_withdrawal_says(scene: Scene) -> None:
    assert "is in force" in scene.said["withdraw"]
    assert found_in_texts(scene.said) == {}


# --- the commands -----------------------------------------------------------------------------------------------------


def tell(*arguments: object, input: bytes | None = None) -> tuple[int, str]:
    """Run a command here; its exit code, and all that it wrote, raised and would show in a traceback."""
    result: Result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=input)
    raised = "".join(traceback.format_exception(*result.exc_info)) if result.exc_info else ""
    return result.exit_code, result.output + result.stderr + repr(result.exception) + raised


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The policy, a key, events and consents with canaries, good and bad ones, one a line."""
    (tmp_path / "policy.yaml").write_text(json.dumps(hunted("")))
    events = [json.dumps(document(who, **{canary(f"name{n}"): 1})).encode() for n, who in enumerate(PEOPLE)]
    events += [case.value for case in CASES if case.value and len(case.value) < 9999 and b"\n" not in case.value]
    (tmp_path / "events.ndjson").write_bytes(b"\n".join(events))
    records = [record.value for record in consents() if record.value and b"\n" not in record.value]
    readable = [value for value in records if value.startswith(b'{"subject":"') and value.endswith(b"}")]
    (tmp_path / "consents.ndjson").write_bytes(b"\n".join(readable))
    (tmp_path / "bad-consents.ndjson").write_bytes(b"\n".join([*records, canary("broken").encode()]))
    assert tell("key", tmp_path / "key")[0] == 0
    return tmp_path


def test_explain_and_check_tell_nothing_of_an_event(files: Path) -> None:
    lines = (files / "events.ndjson").read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        if number % 10 and number > len(PEOPLE):
            continue  # A tenth of the table: a start of the command takes its time.
        code, told = tell(
            "explain", "--policy", files / "policy.yaml", "--event", "-",
            "--consents", files / ("bad-consents.ndjson" if number % 2 else "consents.ndjson"), input=line,
        )  # fmt: skip
        assert (code, found(told)) == (0, set()), number
    assert found(tell("explain", "--policy", files / "policy.yaml", "--event", files / "events.ndjson")[1]) == set()
    assert found(tell("check", files / "policy.yaml", "--sample", files / "events.ndjson", "--strict")[1]) == set()


def test_filter_writes_only_what_the_policy_says(files: Path) -> None:
    given = ["--policy", files / "policy.yaml", "--events", files / "events.ndjson", "--key-file", files / "key"]
    code, told = tell("filter", *given, "--consents", files / "consents.ndjson", "--out", files / "out")
    assert (code, found(told)) == (0, set())
    assert found_in_files(files / "out") == {"shop.contact.ndjson": TOLD}
    code, told = tell("filter", *given, "--consents", files / "bad-consents.ndjson", "--out", files / "denied")
    assert (code, found(told)) == (0, set())
    assert found_in_files(files / "denied") == {}
    assert sum(path.stat().st_size for path in (files / "denied").iterdir() if path.name != "quarantine.ndjson") == 0


@pytest.mark.parametrize("token", [canary("token"), "0" * 32, "\udcff" * 32])
def test_trace_does_not_repeat_a_token(token: str, files: Path) -> None:
    given = ["--policy", files / "policy.yaml", "--purpose", "ads", "--key-file", files / "key"]
    code, told = tell("trace", token, *given)
    assert (code, found(told)) == (1, set())


@pytest.mark.parametrize("people", [b"\xff" + PEOPLE[0].encode(), PEOPLE[0].encode()])
def test_a_withdrawal_that_fails_names_nobody(people: bytes, files: Path) -> None:
    code, told = tell("withdraw", "--bootstrap", "127.0.0.1:1", "--policy", files / "policy.yaml", input=people)
    assert (code, found(told)) == (1, set())


# --- leaks that are planted -------------------------------------------------------------------------------------------

LEAKS = """
import logging, pathlib, streams.kafka.agents as agents, streams.kafka.member as member
bind, committed = agents.bind, member.MetricsWatch.committed
def leaky(*given):
    process = bind(*given)
    def one(record):
        outcome = process(record)
        logging.getLogger("celosia.lane").debug("%r", record.value)
        pathlib.Path("seen").write_bytes(record.key or b"")
        for output in outcome.outputs:
            output.headers.append(("was", record.key or b""))
        return outcome
    return one
agents.bind = leaky
def counted(self, lane, work, *more):
    work.tallies["published", "web", "", "%s"[::-1]] = 1
    committed(self, lane, work, *more)
member.MetricsWatch.committed = counted
""".replace("%s", canary("label")[::-1])
"""A worker that logs values, keeps the last key in a file, puts keys into headers and names into labels.

Backwards: its command line shows this program, and is looked through too.
"""


def test_leaks_that_are_planted_are_found(kafka: ApacheKafka, tmp_path: Path) -> None:
    with deployed(kafka.bootstrap, "planted", hunted("planted."), tmp_path) as shop:
        shop.set_config(shop.raw, "retention.ms=-1")
        scene = Scene(shop)
        write_consents(shop, consents())
        leaking = scene.worker(LEAKS)
        shop.wait_ready()
        produce(shop.bootstrap, shop.raw, documents(8))
        produce(shop.bootstrap, shop.raw, [documents(1)[0]._replace(value=b"{")])
        shop.wait_consumed()
        wait_until(lambda: leaking.outcomes().total() >= 9, "all are counted")
        scene.look(leaking)
        people = TOLD - {"email"}
        assert {"email", "note", "member", *people} <= found(leaking.log)
        assert found_in_files(tmp_path, leave_out=[path.name for path in tmp_path.glob("*.log")])["seen"] <= people
        assert people <= of_records(both(shop, shop.plan.purposes["ads"].topic))
        assert of_records(both(shop, shop.quarantine)) <= people
        assert of_records(both(shop, shop.quarantine))
        assert found_in_texts(scene.pages) == {f"{leaking.pid}/metrics": {"label"}}
        assert of_process(leaking.pid) == set()


def test_what_is_in_a_command_line_is_found() -> None:
    command = [sys.executable, "-c", "input()", canary("argument")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={"NAME": canary("environment")}) as process:
        wait_until(lambda: of_process(process.pid) == {"argument", "environment"}, "both are found")
        process.kill()


@pytest.mark.parametrize("text", ["y2FuYXJ5N2YzYQ", "63616e6172793766336130", "CANARY7F3A-NOTE"])
def test_disguises_are_seen_through(text: str) -> None:
    assert found(text)


def test_base64_is_seen_through_wherever_it_begins() -> None:
    for before in range(4):
        for after in range(4):
            text = base64.b64encode(b"x" * before + CANARY.encode() + b"y" * after)
            assert found(text) == {"base64"}
    assert found(base64.b64encode(b"nothing of anybody is in here, and it is long enough")) == set()
