"""The README is true: its commands run, its tables are current, what it names is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import README, ROOT, before, minimized, renewed

TEXT = README.read_text()


def test_generated_parts_are_current() -> None:
    assert renewed(TEXT) == TEXT, "the README's generated parts are old: run make schemas"


def test_the_example_says_what_the_program_makes_of_it() -> None:
    assert minimized(before(TEXT)) in TEXT
    published = json.loads(minimized(before(TEXT)))
    raw = json.loads(before(TEXT))
    assert raw["customer"] not in json.dumps(published)
    assert raw["item"]["description"] not in json.dumps(published)
    assert "country" not in published


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:streams|tests|schemas|docker)/[\w./-]*)`", TEXT))))
def test_named_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


def _commands() -> list[str]:
    blocks = re.findall(r"(?s)```sh\n(.*?)```", TEXT)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if "celosia" in line]


def test_every_command_of_the_readme_is_one_that_exists() -> None:
    verbs = {match[1] for match in re.finditer(r"celosia (\w+)", " ".join(_commands()))}
    assert {"check", "filter", "explain", "topics", "run"} <= verbs


@pytest.mark.parametrize("command", [command for command in _commands() if "--bootstrap" not in command])
def test_commands_that_need_no_broker_run_as_they_are_written(command: str, tmp_path: Path) -> None:
    for folder in ("schemas", "docker"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(tmp_path / "home")}
    shell = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "filter" in command:
        summary = json.loads(done.stdout)
        kinds = {kind: summary.get(kind, 0) for kind in ("published", "counted", "suppressed", "quarantined")}
        assert summary["in"] == sum(kinds.values())
        assert kinds["published"] + kinds["counted"] > 0


def test_targets_of_make_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?m)(?:^|`)make (\w+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
