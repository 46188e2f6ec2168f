"""The display of progress: lines that are held back until a command has gone on."""

import subprocess
import sys

import pytest

from edgetie_cli.printing import progress
from edgetie_cli.printing.progress import LiveStages, live


def test_lines_are_printed_when_a_command_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    with live(quiet=False) as stages:
        stages.stage("load")
        stages.advance(1, 2)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.split() == ["load", "0.0", "s"]


def test_nothing_is_printed_before_an_early_error(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        with live(quiet=False) as stages:
            stages.stage("load")
            stages.stage("check")
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        refuse()
    assert capsys.readouterr().err == ""


def test_lines_of_a_long_command_are_printed_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_HOLD_SECONDS", 0.0)
    stages = LiveStages()
    stages.stage("load")
    stages.stage("run")
    assert capsys.readouterr().err == ""  # what follows may refuse the usage
    stages.finish()
    assert "load" in capsys.readouterr().err
    stages.print_lines()
    assert "run" in capsys.readouterr().err


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with live(quiet=True) as stages:
        stages.stage("load")
    assert capsys.readouterr() == ("", "")
    assert list(stages.seconds) == ["load"]


def test_stdout_is_reserved_for_the_result() -> None:
    code = (
        "import os; from edgetie_cli.printing.progress import live\n"
        "with live(True):\n    print('library'); os.write(1, b'native')\n"
        "print('result')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    assert "library" in done.stderr
    assert "native" in done.stderr
