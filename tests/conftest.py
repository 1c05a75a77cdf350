"""How all tests run.

* Hypothesis: `default` is what `make test` runs; HYPOTHESIS_PROFILE=thorough draws twenty times as much. Failures print
  a blob that reproduces them.
* CELOSIA_NO_SKIP=1 (as CI sets it where there is a broker with transactions) turns a skip into a failure: a promise
  that nobody looked at is not kept. Only data that the repository does not carry ($CELOSIA_DATA) may still be missing.
"""

import os
from collections.abc import Generator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
_SAID = pytest.StashKey[dict[str, list[str]]]()
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]  # scenarios are large on purpose
settings.register_profile("default", max_examples=60, deadline=None, print_blob=True, suppress_health_check=_SLOW)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def said(pytestconfig: pytest.Config) -> dict[str, list[str]]:
    """What tests have to tell at the end of the output: lines by title."""
    return pytestconfig.stash.setdefault(_SAID, {})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a process that runs a part of the tests hand over what they had to tell."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["said"] = session.config.stash.get(_SAID, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it."""
    said = node.config.stash.setdefault(_SAID, {})
    for title, lines in getattr(node, "workeroutput", {}).get("said", {}).items():
        said.setdefault(title, []).extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell it."""
    for title, lines in config.stash.get(_SAID, {}).items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)


def _looked_at(report: Report) -> Report:
    """Turn a skip into a failure where nothing may be skipped."""
    if report.skipped and os.environ.get("CELOSIA_NO_SKIP") == "1" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "CELOSIA_DATA" not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped, and CELOSIA_NO_SKIP=1 allows no skips: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test may be skipped by itself."""
    return _looked_at((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Or with its whole module, before there are tests."""
    return _looked_at((yield))
