"""`make fuzz`: what it says where it cannot begin. (That it finds something is seen where atheris is.)"""

import sys

import pytest

from tests.fuzz import __main__ as command


def test_without_atheris_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    assert command.main() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install" in line


@pytest.mark.parametrize("arguments", [["nothing"], ["--seconds", "0"], ["--seconds", "soon"], ["--second", "1"]])
def test_what_is_not_known_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", *arguments])
    with pytest.raises(SystemExit) as refused:
        command.main()
    assert refused.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("fuzz: ")
