"""OpenDP is optional: what happens where it is missing, and that nothing else needs it."""

import subprocess
import sys

import pytest

from streams.crowd.noise import noisy
from streams.crowd.rule import CrowdRule, Noise
from streams.errors import SettingsError


def test_without_opendp_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opendp", "opendp.prelude"):
        monkeypatch.setitem(sys.modules, name, None)
    rule = CrowdRule("missing", 5, 100, 0, ("country",), most_events=1, noise=Noise(1.0, 1e-6, 1.0))
    with pytest.raises(SettingsError, match=r"pip install 'celosia\[noise\]'") as caught:
        noisy(rule, {})
    assert "\n" not in str(caught.value)


def test_opendp_is_not_loaded_until_a_rule_has_noise() -> None:
    code = "import streams.crowd.noise, sys; sys.exit('opendp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
