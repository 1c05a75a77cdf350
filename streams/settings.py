"""The worker's settings: flags of `celosia run`, or the environment (`CELOSIA_BOOTSTRAP`, `CELOSIA_POLICY`, ...).

They travel as one frozen object. What is missing or wrong is said in one line, and nothing starts.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from streams.errors import SettingsError

__all__ = ["Settings", "read_settings"]

Guarantee = Literal["exactly-once", "at-least-once"]
Gate = Literal["fast", "strict"]


class Settings(BaseSettings):
    """What a worker needs to know. `read_settings` makes one."""

    model_config = SettingsConfigDict(env_prefix="CELOSIA_", frozen=True, extra="forbid", hide_input_in_errors=True)

    bootstrap: Annotated[str, Field(pattern=r"^[^\s,:]+:\d{1,5}(,[^\s,:]+:\d{1,5})*$")]
    """Kafka's bootstrap servers, host:port, separated by commas"""
    policy: Path
    guarantee: Guarantee = "exactly-once"
    gate: Gate = "fast"
    """how a lane asks for consents: `strict` holds even while a leader is cut off from its cluster without knowing"""
    key_file: Path | None = None
    """None: the installation's own key (`streams.keys.installation_key`)"""
    group: Annotated[str | None, Field(pattern=r"^[a-zA-Z0-9._-]{1,200}$")] = None
    """consumer group, and the beginning of all transactional ids; None: `celosia-` and the policy's name"""
    ops_host: str = "127.0.0.1"
    ops_port: Annotated[int, Field(ge=0, le=65535)] = 6066
    """port of the page for operators; 0: any that is free"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    session_timeout_ms: Annotated[int, Field(ge=1_000)] = 10_000
    """after this long without a heartbeat another worker takes over"""
    transaction_timeout_ms: Annotated[int, Field(ge=1_000)] = 60_000
    batch_records: Annotated[int, Field(ge=1, le=100_000)] = 4_000
    """the most records of one topic in one transaction"""
    compression: Literal["gzip", "snappy", "lz4", "zstd"] | None = None
    """of what is published"""


def read_settings(**given: Any) -> Settings:
    """Make settings from flags; what is not given (or None) comes from the environment, then from the defaults.

    Raises:
        SettingsError: one line for each setting that is missing or wrong.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            name = str(item["loc"][0]) if item["loc"] else "settings"
            flag = f"--{name.replace('_', '-')} (or CELOSIA_{name.upper()})"
            what = "it is missing" if item["type"] == "missing" else item["msg"][:1].lower() + item["msg"][1:]
            lines.append(f"{flag}: {what}")
        raise SettingsError("; ".join(lines)) from None
