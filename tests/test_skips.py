"""Where nothing may be skipped, a skip is a failure: of a test, and of a whole module."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("no_skip", "told"), [("", "1 skipped"), ("1", "CELOSIA_NO_SKIP=1 allows no skips")])
def test_a_module_that_lacks_what_it_needs_is_not_passed_over_in_silence(
    no_skip: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "opendp.py").write_text("raise ModuleNotFoundError(\"No module named 'opendp'\", name='opendp')")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/crowd_noise/test_told.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CELOSIA_NO_SKIP": no_skip},
        capture_output=True,
        text=True,
    )
    assert told in done.stdout
    assert "OpenDP is not installed" in done.stdout, "the reason is told"
    assert "passed" not in done.stdout
