"""Settings: read from the environment, refused when they make no sense."""

import os
from pathlib import Path
from typing import Any

import pydantic
import pytest

from streams.errors import SettingsError
from streams.settings import Settings, read_settings

GIVEN: dict[str, Any] = {"bootstrap": "localhost:9092", "policy": Path("shop.yaml")}
SERVERS = r"^[^\s,:]+:\d{1,5}(,[^\s,:]+:\d{1,5})*$"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("CELOSIA_"):
            monkeypatch.delenv(name)


def refusal(**given: Any) -> str:
    with pytest.raises(SettingsError) as error:
        read_settings(**given)
    assert error.value.__suppress_context__, "what was given may be a secret"
    return str(error.value)


def test_what_is_not_given_is_what_is_promised() -> None:
    settings = read_settings(**GIVEN)
    assert settings.guarantee == "exactly-once"
    assert settings.ops_host == "127.0.0.1", "operators' pages are not for the world"
    assert (settings.key_file, settings.group, settings.compression) == (None, None, None)


def test_settings_come_from_the_environment_and_flags_come_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELOSIA_BOOTSTRAP", "one:1")
    monkeypatch.setenv("CELOSIA_POLICY", "shop.yaml")
    monkeypatch.setenv("CELOSIA_BATCH_RECORDS", "7")
    assert read_settings().bootstrap == "one:1"
    assert read_settings(bootstrap=None, batch_records=None).batch_records == 7
    settings = read_settings(bootstrap="two:2", batch_records=8)
    assert (settings.bootstrap, settings.batch_records, settings.policy) == ("two:2", 8, Path("shop.yaml"))


def test_settings_are_frozen() -> None:
    settings = read_settings(**GIVEN)
    with pytest.raises(pydantic.ValidationError):
        settings.guarantee = "at-least-once"  # type: ignore[misc]


@pytest.mark.parametrize("servers", ["a:1", "a.b-c:65535", "10.0.0.1:9092,b:2"])
def test_bootstrap_servers_are_hosts_with_ports(servers: str) -> None:
    assert read_settings(**GIVEN | {"bootstrap": servers}).bootstrap == servers


@pytest.mark.parametrize(
    "servers", ["", "localhost", "localhost:", ":9092", "a:1,", "a:1, b:2", "kafka://a:1", "a:123456", "a:1\n"]
)
def test_other_bootstrap_servers_are_refused(servers: str) -> None:
    assert refusal(**GIVEN | {"bootstrap": servers}) == (
        f"--bootstrap (or CELOSIA_BOOTSTRAP): string should match pattern '{SERVERS}'"
    )


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        (
            "guarantee",
            "at-most-once",
            "--guarantee (or CELOSIA_GUARANTEE): input should be 'exactly-once' or 'at-least-once'",
        ),
        ("ops_port", 65536, "--ops-port (or CELOSIA_OPS_PORT): input should be less than or equal to 65535"),
        ("ops_port", -1, "--ops-port (or CELOSIA_OPS_PORT): input should be greater than or equal to 0"),
        ("batch_records", 0, "--batch-records (or CELOSIA_BATCH_RECORDS): input should be greater than or equal to 1"),
        (
            "session_timeout_ms",
            999,
            "--session-timeout-ms (or CELOSIA_SESSION_TIMEOUT_MS): input should be greater than or equal to 1000",
        ),
        ("group", "a b", "--group (or CELOSIA_GROUP): string should match pattern '^[a-zA-Z0-9._-]{1,200}$'"),
        (
            "compression",
            "rar",
            "--compression (or CELOSIA_COMPRESSION): input should be 'gzip', 'snappy', 'lz4' or 'zstd'",
        ),
        ("made_up", 1, "--made-up (or CELOSIA_MADE_UP): extra inputs are not permitted"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_the_name_of_its_flag(name: str, value: Any, what: str) -> None:
    assert refusal(**GIVEN | {name: value}) == what


def test_all_that_is_missing_is_told_at_once() -> None:
    assert refusal() == "--bootstrap (or CELOSIA_BOOTSTRAP): it is missing; --policy (or CELOSIA_POLICY): it is missing"


def test_a_refusal_does_not_show_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELOSIA_OPS_PORT", "hunter2")
    assert "hunter2" not in refusal(**GIVEN | {"bootstrap": "user:hunter2@host"})


def test_every_setting_can_be_given_in_the_environment() -> None:
    assert Settings.model_config["env_prefix"] == "CELOSIA_"
    assert {name for name, field in Settings.model_fields.items() if field.is_required()} == {"bootstrap", "policy"}
