"""The stories in schemas/examples: folders that a person reads and this test runs.

`expected/` holds what must come out. Outcomes and quarantine records were written by hand, outputs were computed with
the oracle in `tests/model.py`; one test here holds them against the oracle, the others against the program: `process`,
`celosia filter` and `celosia check`. The message of `red-line-refused` was written by hand; those of `bad-policy` and
`unknown-words` are the program's own, checked line by line against the policies, so they only guard against change.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from click.testing import CliRunner

from streams import cli
from streams.consent import Consents
from streams.errors import PolicyError
from streams.event import RawEvent, milliseconds
from streams.keys import MasterKey
from streams.outcome import Outcome
from streams.pipeline import Place, process
from streams.plan import compile_plan
from streams.policy import load_policy, parse_policy
from tests.model import Event, History, Prediction, predict

EXAMPLES = Path(__file__).parent.parent / "schemas" / "examples"
SECRET = bytes(32)
"""The key of all stories: nobody's secret."""
WANTED = {
    "bad-policy",
    "expired",
    "in-a-crowd",
    "lower-rung",
    "no-consent",
    "recorded-before-consent",
    "red-line-refused",
    "unknown-words",
    "withdrawn-in-mid-stream",
}

STORIES = sorted(folder for folder in EXAMPLES.iterdir() if folder.is_dir())
REFUSED = [story for story in STORIES if (story / "expected" / "refused.txt").exists()]
COUNTED = [story for story in STORIES if list((story / "expected").glob("*.csv"))]
TOLD = [story for story in STORIES if story not in REFUSED + COUNTED]
FILES = [story for story in TOLD if not (story / "stream.ndjson").exists()]


def named(stories: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("story", stories, ids=lambda story: story.name)


class Step(NamedTuple):
    """One event of a story, and the consent records that came before it: key and value."""

    event: bytes
    history: History


def now(story: Path) -> int:
    return milliseconds((story / "now.txt").read_text().strip())


def policy(story: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((story / "policy.yaml").read_bytes())
    return document


def documents(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def consent(line: bytes) -> tuple[bytes, bytes]:
    return json.loads(line)["subject"].encode(), line


def steps(story: Path) -> Iterator[Step]:
    """Yield the events of a story, in order, each with the consent records that came before it."""
    if story in FILES:
        history: History = [consent(line) for line in (story / "consents.ndjson").read_bytes().splitlines()]
        yield from (Step(line, history) for line in (story / "events.ndjson").read_bytes().splitlines())
        return
    history = []
    for line in documents(story / "stream.ndjson"):
        [(what, document)] = line.items()
        assert what in ("consent", "event"), f"{story.name}: a line is a consent or an event, and not a {what}"
        written = json.dumps(document).encode()
        if what == "event":
            yield Step(written, list(history))
        else:
            history.append(consent(written))


def expected(story: Path, file: str) -> list[Any]:
    return documents(story / "expected" / file)


def output_files(story: Path) -> dict[str, str]:
    """Return the name of the file of each topic that a story's policy writes to."""
    return {purpose["topic"]: f"{purpose['topic']}.ndjson" for purpose in policy(story)["purposes"].values()}


def run(story: Path) -> list[Outcome]:
    plan = compile_plan(load_policy(story / "policy.yaml"), MasterKey(SECRET))
    place = Place(plan.sources[0], 0, keyed=False)
    outcomes = []
    for offset, step in enumerate(steps(story)):
        consents = Consents()
        for key, value in step.history:
            consents.apply(key, value)
        outcomes.append(process(RawEvent(offset, now(story), None, step.event), place, consents, plan, now(story)))
    return outcomes


def ask_the_oracle(story: Path) -> list[Prediction]:
    document = policy(story)
    [source] = document["sources"]
    return [
        predict(document, SECRET, Event(step.event, None, now(story), source, keyed=False), step.history, now(story))
        for step in steps(story)
    ]


def told(kind: str, reason: str | None, stamps: list[dict[str, Any]], refusals: dict[str, str]) -> dict[str, Any]:
    """Return an outcome as `expected/outcomes.ndjson` writes it."""
    served = {stamp["purpose"]: stamp["rung"] for stamp in stamps}
    said = {"outcome": kind, "reason": reason, "served": served, "refused": refusals}
    return {name: value for name, value in said.items() if value}


# The folders


def test_every_story_is_there() -> None:
    assert {story.name for story in STORIES} >= WANTED


@named(STORIES)
def test_a_story_is_whole(story: Path) -> None:
    wanted = {"README.md", "policy.yaml", "expected"}
    results = {"refused.txt"}
    if story in COUNTED:
        wanted |= {"now.txt", "consents.ndjson", "events.ndjson"}
        results = {name.replace(".ndjson", ".csv") for name in output_files(story).values()}
    if story in TOLD:
        wanted |= {"now.txt", "consents.ndjson", "events.ndjson"} if story in FILES else {"now.txt", "stream.ndjson"}
        results = {"outcomes.ndjson", "quarantine.ndjson", *output_files(story).values()}
    assert {file.name for file in story.iterdir()} == wanted
    assert {file.name for file in (story / "expected").iterdir()} == results
    assert len((story / "README.md").read_text().splitlines()) > 4, "say what happens, for a person"
    for file in (file for file in story.rglob("*") if file.is_file()):
        text = file.read_text()
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), f"{file.name} ends in one line end"


@named(TOLD)
def test_a_story_expects_one_outcome_for_each_event(story: Path) -> None:
    outcomes = expected(story, "outcomes.ndjson")
    assert len(outcomes) == len(list(steps(story)))
    kinds = [outcome["outcome"] for outcome in outcomes]
    assert kinds.count("quarantined") == len(expected(story, "quarantine.ndjson"))
    served = sum(len(outcome.get("served", {})) for outcome in outcomes)
    assert served == sum(len(expected(story, file)) for file in output_files(story).values()) > 0


# What comes out


@named(TOLD)
def test_what_is_expected_is_what_the_oracle_says(story: Path) -> None:
    predictions = ask_the_oracle(story)
    assert expected(story, "outcomes.ndjson") == [
        told(said.kind, said.reason, [output.value["_celosia"] for output in said.outputs], dict(said.refusals))
        for said in predictions
    ]
    for topic, file in output_files(story).items():
        values = [output.value for said in predictions for output in said.outputs if output.topic == topic]
        assert expected(story, file) == values, file


@named(TOLD)
def test_the_program_makes_of_a_story_what_is_expected(story: Path) -> None:
    outcomes = run(story)
    values: dict[str, list[Any]] = {
        topic: [] for topic in [*output_files(story), f"{policy(story)['policy']}.quarantine"]
    }
    for outcome in outcomes:
        for output in outcome.outputs:
            values[output.topic].append(json.loads(output.value))
    assert [
        told(
            outcome.kind.value,
            outcome.reason and outcome.reason.value,
            [json.loads(output.value)["_celosia"] for output in outcome.outputs if outcome.kind == "published"],
            {purpose: why.value for purpose, why in outcome.refusals},
        )
        for outcome in outcomes
    ] == expected(story, "outcomes.ndjson")
    files = output_files(story)
    for topic, made in values.items():
        assert made == expected(story, files.get(topic, "quarantine.ndjson")), topic


def filtered(story: Path, folder: Path, *more: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Run `celosia filter`; return its files and its summary."""
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text(SECRET.hex())
    arguments = ["filter", "--out", folder / "out", "--key-file", key, *more]
    arguments += ["--now", (story / "now.txt").read_text().strip()]
    for option, file in (("policy", "policy.yaml"), ("consents", "consents.ndjson"), ("events", "events.ndjson")):
        arguments += [f"--{option}", story / file]
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return {file.name: file.read_bytes() for file in (folder / "out").iterdir()}, json.loads(result.stdout)


@named(FILES)
def test_celosia_filter_makes_the_same_of_a_story(story: Path, tmp_path: Path) -> None:
    made, summary = filtered(story, tmp_path)
    assert set(made) == {*output_files(story).values(), "quarantine.ndjson"}
    for name, content in made.items():
        assert [json.loads(line) for line in content.splitlines()] == expected(story, name), name
    same = b"".join(output.value + b"\n" for outcome in run(story) for output in outcome.outputs)
    assert sorted(b"".join(made.values()).splitlines()) == sorted(same.splitlines())
    kinds = [outcome["outcome"] for outcome in expected(story, "outcomes.ndjson")]
    assert summary["in"] == len(kinds)
    assert all(summary[kind] == kinds.count(kind) for kind in ("published", "suppressed", "quarantined"))


@named(COUNTED)
def test_a_crowd_is_told_as_expected_in_both_forms(story: Path, tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    tables, _ = filtered(story, tmp_path, "--csv")
    files, summary = filtered(story, tmp_path / "json")
    assert summary["counted"] + summary["suppressed"] == summary["in"] == len(documents(story / "events.ndjson"))
    for file in (story / "expected").iterdir():
        assert tables[file.name] == file.read_bytes()
        told = list(csv.DictReader(io.StringIO(file.read_text())))
        cells = [json.loads(line) for line in files[f"{file.stem}.ndjson"].splitlines()]
        assert [(cell["people"], cell["events"]) for cell in cells if "cell" in cell] == [
            (int(row["people"]), int(row["events"])) for row in told
        ]


# What is refused


@named(REFUSED)
def test_a_bad_policy_is_refused_with_its_exact_message(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = (story / "expected" / "refused.txt").read_text()
    with pytest.raises(PolicyError) as refused:
        parse_policy((story / "policy.yaml").read_bytes(), "policy.yaml")
    assert f"{refused.value}\n" == message
    monkeypatch.chdir(story)
    result = CliRunner().invoke(cli.main, ["check", "policy.yaml"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert message.strip() in result.stderr


@named(REFUSED)
def test_nothing_starts_with_a_bad_policy(story: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.ndjson").write_text("")
    arguments = ["filter", "--policy", story / "policy.yaml", "--out", tmp_path / "out"]
    arguments += ["--consents", tmp_path / "lines.ndjson", "--events", tmp_path / "lines.ndjson"]
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
