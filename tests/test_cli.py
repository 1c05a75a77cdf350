"""The commands: what they print, how they end, and what they say of mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streams import cli
from streams.keys import MasterKey
from streams.plan import compile_plan
from streams.policy import load_policy

ROOT = Path(__file__).parent.parent
POLICIES = ROOT / "schemas" / "policies"
SHOP, RETAIL = POLICIES / "shop.yaml", POLICIES / "retail.yaml"
NOW = "2026-03-01T21:20:00Z"


def celosia(*arguments: object, input: bytes | str | None = None, **environment: str) -> Result:
    return CliRunner().invoke(cli.main, [str(item) for item in arguments], input=input, env=environment)


def lines(*documents: Any) -> bytes:
    return b"".join(item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n" for item in documents)


def purchase(customer: str = "17850", **more: Any) -> dict[str, Any]:
    item = {"stock_code": "85123A", "description": "A LANTERN", "quantity": 6, "unit_price": 2.55}
    event = {"event_id": "e1", "type": "purchase", "occurred_at": "2026-03-01T09:30:00Z", "customer": customer}
    return {**event, "invoice": "536365", "country": "France", "item": item, **more}


def consent(subject: str = "17850", **rungs: str) -> dict[str, Any]:
    rungs = rungs or {"service.orders": "identified"}
    grants = {purpose: {"rung": rung, "since": "2026-01-01T00:00:00Z"} for purpose, rung in rungs.items()}
    return {"subject": subject, "version": 1, "purposes": grants}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with two consents, three purchases and a key."""
    (tmp_path / "consents.ndjson").write_bytes(lines(consent(), consent("13047", **{"shop.assortment": "anonymous"})))
    (tmp_path / "events.ndjson").write_bytes(lines(purchase(), purchase("13047"), b"{\n", purchase("nobody")))
    (tmp_path / "event.json").write_text(json.dumps(purchase(), indent=2))
    MasterKey.create(tmp_path / "key")
    return tmp_path


def filtered(shop: Path, *more: object, input: bytes | None = None, **options: object) -> Result:
    given = {
        "policy": RETAIL,
        "consents": "consents.ndjson",
        "events": "events.ndjson",
        "out": "out",
        "key_file": "key",
    }
    arguments = [
        f"--{name.replace('_', '-')}={shop / value if isinstance(value, str) and value != '-' else value}"
        for name, value in (given | options).items()
    ]
    return celosia("filter", *arguments, "--now", NOW, *more, input=input)


# check


@pytest.mark.parametrize("policy", [SHOP, RETAIL])
def test_check_of_a_sound_policy(policy: Path) -> None:
    result = celosia("check", policy)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"policy {policy.stem}@")


def test_check_refuses_a_bad_policy_with_everything_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        SHOP.read_text().replace("user.contact.email", "user.contact.emial").replace("round: 10", "round: 0")
    )
    result = celosia("check", file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"policy `{file}` is refused:" in result.stderr
    assert "did you mean `user.contact.email`?" in result.stderr
    file.write_text(SHOP.read_text().replace("round: 10", "round: 0"))
    assert "as `round`: wanted the step" in celosia("check", file).stderr


def test_check_tells_what_deserves_a_second_look(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(RETAIL.read_text().replace("for: [service.orders]}", "for: all}", 1))
    result = celosia("check", file)
    assert result.exit_code == 0
    assert "worth a second look:\n  events.purchase.event_id: kept as it is for" in result.stdout


def test_check_of_a_sample_fails_only_when_strict(tmp_path: Path) -> None:
    sample = tmp_path / "sample.ndjson"
    sample.write_bytes(lines(purchase(coupon="X1"), purchase(coupon="X2")))
    result = celosia("check", RETAIL, "--sample", sample)
    assert result.exit_code == 0
    assert "purchase  coupon  in 2 of 2" in result.stdout
    strict = celosia("check", RETAIL, "--sample", "-", "--strict", input=sample.read_bytes())
    assert (strict.exit_code, strict.stdout) == (1, result.stdout)
    assert "1 fields of the sample are not named by policy retail@1" in strict.stderr
    assert celosia("check", RETAIL, "--strict").exit_code == 0
    sample.write_bytes(lines(purchase()))
    assert celosia("check", RETAIL, "--sample", sample, "--strict").exit_code == 0
    # A sample in which no event can be read shows nothing, and must not pass for one that is all named.
    sample.write_text(json.dumps(purchase(), indent=2))
    assert "shows nothing" in celosia("check", RETAIL, "--sample", sample, "--strict").stderr


# explain


def test_explain_of_one_event(shop: Path) -> None:
    (shop / "consent.json").write_text(json.dumps(consent(), indent=2))
    arguments = ["explain", "--policy", RETAIL, "--event", shop / "event.json", "--at", NOW]
    one = celosia(*arguments, "--consent", shop / "consent.json")
    assert (one.exit_code, one.stderr) == (0, "")
    assert one.stdout.startswith("published to 1 of 3 purposes\n")
    assert celosia(*arguments, "--consents", shop / "consents.ndjson").stdout == one.stdout
    assert celosia(*arguments).stdout.startswith("suppressed: no_consent")
    only = celosia(*arguments, "--consent", shop / "consent.json", "--purpose", "shop.assortment").stdout
    assert re.findall(r"^[a-z.]+(?=: )", only, re.MULTILINE) == ["shop.assortment"]


def test_explain_of_an_event_on_standard_input() -> None:
    result = celosia("explain", "--policy", RETAIL, "--event", "-", input=json.dumps(purchase()))
    assert (result.exit_code, result.stdout[:22]) == (0, "suppressed: no_consent")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--purpose", "service.order"], 1, "did you mean `service.orders`?"),
        (["--at", "yesterday"], 2, "wanted RFC 3339"),
        (["--consents", "consents.ndjson", "--consent", "event.json"], 2, "give either --consents or --consent"),
        (["--source", "web"], 1, "has no source `web`"),
        (["--event", "events.ndjson"], 1, "head -n 1"),
        (["--event", "missing.json"], 2, "does not exist"),
    ],
)
def test_explain_says_what_was_asked_wrongly(
    shop: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(shop)
    result = celosia("explain", "--policy", RETAIL, "--event", "event.json", *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True)


# filter


def test_filter_writes_files_and_a_summary(shop: Path) -> None:
    result = filtered(shop)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "policy": "retail@1",
        "source": "till",
        "in": 4,
        "published": 2,
        "suppressed": 1,
        "quarantined": 1,
        "outputs": {"personalization.recommendations": 0, "shop.assortment": 1, "service.orders": 1},
        "reasons": {"malformed": 1, "no_consent": 1},
        "refusals": {
            "personalization.recommendations": {"not_allowed": 2},
            "service.orders": {"not_allowed": 1},
            "shop.assortment": {"not_allowed": 1},
        },
        "consents": {"lines": 2, "subjects": 2, "unreadable": 0, "blocked": False, "blocked_by_line": None},
    }
    assert {file.name: len(file.read_bytes().splitlines()) for file in (shop / "out").iterdir()} == {
        "personalization.recommendations.ndjson": 0,
        "shop.assortment.ndjson": 1,
        "service.orders.ndjson": 1,
        "quarantine.ndjson": 1,
    }


def test_filter_reads_standard_input_and_replaces_only_by_force(shop: Path) -> None:
    assert filtered(shop).exit_code == 0
    again = filtered(shop)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "replace with --force" in again.stderr
    events = (shop / "events.ndjson").read_bytes()
    result = filtered(shop, "--force", events="-", input=events)
    assert json.loads(result.stdout)["in"] == 4


def test_filter_says_that_consents_cannot_be_read(shop: Path) -> None:
    (shop / "consents.ndjson").write_bytes(lines(consent(), b"{broken\n"))
    result = filtered(shop)
    assert result.exit_code == 0
    assert "line 2: neither the record nor its subject can be read: nobody is served" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["published"], summary["consents"]["blocked_by_line"]) == (0, 2)


def test_filter_refuses_a_source_without_time(shop: Path) -> None:
    (shop / "timeless.yaml").write_text(RETAIL.read_text().replace("    time: occurred_at\n", ""))
    result = filtered(shop, policy="timeless.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "sources.till has no `time`" in result.stderr
    assert not (shop / "out").exists()


def test_filter_decides_as_of_the_time_it_is_given(shop: Path) -> None:
    assert json.loads(filtered(shop).stdout)["published"] == 2
    early = filtered(shop, "--force", "--now", "2025-12-31T00:00:00Z")
    assert json.loads(early.stdout)["reasons"]["recorded_before_consent"] == 2


# keys


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "celosia.key"
    assert "holds a new key" in celosia("key", file).stdout
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    again = celosia("key", file)
    assert (again.exit_code, "it is kept" in again.stdout, file.read_bytes()) == (0, True, before)
    file.write_text("no key")
    assert celosia("key", file).exit_code == 1
    assert file.read_text() == "no key"


def test_the_key_of_the_installation_is_made_on_first_use_and_a_named_one_never(shop: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(shop / "config"), "CELOSIA_KEY_FILE": ""}
    arguments = ["filter", "--policy", RETAIL, "--consents", shop / "consents.ndjson"]
    arguments += ["--events", shop / "events.ndjson", "--out", shop / "out", "--force"]
    assert str(shop / "config" / "celosia" / "key") in celosia(*arguments, **environment).stderr
    assert (shop / "config" / "celosia" / "key").stat().st_mode & 0o777 == 0o600
    assert celosia(*arguments, **environment).stderr == ""
    for given in ({"CELOSIA_KEY_FILE": str(shop / "missing")}, {"CELOSIA_KEY_FILE": str(shop)}):
        assert (celosia(*arguments, **given).exit_code, (shop / "missing").exists()) == (1, False)
    assert f"make one: celosia key {shop / 'missing'}" in celosia(*arguments, "--key-file", shop / "missing").stderr


def test_trace_opens_what_the_pipeline_sealed(shop: Path) -> None:
    plan = compile_plan(load_policy(RETAIL), MasterKey.of_file(shop / "key"))
    token = plan.purposes["service.orders"].seal("shop.purchases.raw", 3, 1042).decode()
    arguments = ["trace", "--policy", RETAIL, "--key-file", shop / "key", "--purpose"]
    assert celosia(*arguments, "service.orders", token).stdout == "shop.purchases.raw partition 3 offset 1042\n"
    for purpose, given in (
        ("shop.assortment", token),
        ("service.orders", "00" * 16),
        ("service.orders", "é"),
        ("x", token),
    ):
        result = celosia(*arguments, purpose, given)
        assert (result.exit_code, result.stdout) == (1, "")


def test_trace_makes_no_key(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "CELOSIA_KEY_FILE": ""}
    result = celosia("trace", "00" * 16, "--policy", RETAIL, "--purpose", "service.orders", **environment)
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])


# Errors


@pytest.mark.parametrize("command", ["check", "explain", "filter", "key", "trace", "topics", "run", "demo"])
def test_every_command_has_help_and_refuses_what_it_does_not_know(command: str) -> None:
    assert celosia(command, "--help").exit_code == 0
    assert celosia(command, "--colour").exit_code == 2


def test_an_unexpected_error_tells_its_type_and_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_file: Path) -> None:
        secret = "ana@example.org"
        raise KeyError(secret)

    monkeypatch.setattr("streams.policy.load_policy", broken)
    result = celosia("check", SHOP)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"celosia: unexpected KeyError, .* offline\.py:\d+ test_cli\.py:\d+\n", result.stderr)


def test_a_broker_that_does_not_answer_is_one_line() -> None:
    result = celosia("topics", CELOSIA_BOOTSTRAP="127.0.0.1:1", CELOSIA_POLICY=str(RETAIL))
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"celosia: no Kafka broker answers at 127\.0\.0\.1:1 .*\n", result.stderr)


def test_a_worker_with_a_wrong_setting_does_not_start() -> None:
    result = celosia("run", "--bootstrap", "nowhere", "--policy", RETAIL)
    assert result.exit_code == 1
    assert "--bootstrap" in result.stderr


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run_worker(settings: Any) -> int:
        given.append(settings)
        return 3

    monkeypatch.setattr("streams.kafka.app.run_worker", run_worker)
    environment = {"BOOTSTRAP": "a:1", "POLICY": str(RETAIL), "KEY_FILE": "/keys/k", "OPS_PORT": "0", "GROUP": "g"}
    result = celosia("run", **{f"CELOSIA_{name}": value for name, value in environment.items()})
    assert result.exit_code == 3
    [settings] = given
    assert (settings.bootstrap, settings.policy, settings.key_file) == ("a:1", RETAIL, Path("/keys/k"))
    assert (settings.ops_port, settings.ops_host, settings.group) == (0, "127.0.0.1", "g")
    assert settings.guarantee == "exactly-once"
    celosia("run", "--bootstrap", "b:2", "--policy", RETAIL, "--guarantee", "at-least-once", "--log-level", "error")
    assert (given[1].bootstrap, given[1].guarantee, given[1].log_level) == ("b:2", "at-least-once", "error")


def test_the_demo_gets_what_was_asked_for_and_its_exit_code_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def run_demo(**options: Any) -> int:
        given.append(options)
        return 1

    monkeypatch.setattr("streams.demo.run_demo", run_demo)
    assert celosia("demo").exit_code == 1
    celosia("demo", "--seconds", "5", "--plain", "--broker", "kafka", "--events-per-second", "50")
    assert given == [
        {"plain": False, "broker": "embedded"},
        {"seconds": 5.0, "plain": True, "broker": "kafka", "rate": 50.0},
    ]
