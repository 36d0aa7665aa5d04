"""The reasonrl command, and the older spellings of its parts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasonrl.cli import dashboard, sweep
from reasonrl.cli.main import main

ROOT = Path(__file__).parents[3]
COMMANDS = [
    "runs",
    "compare",
    "diff",
    "remove",
    "status",
    "logs",
    "resubmit",
    "cancel",
    "clean",
    "page",
    "mirror",
    "push",
    "share",
]


def commands_of(text: str) -> list[str]:
    """The commands that a help lists, one a line."""
    _, _, rest = text.partition("  COMMAND\n")
    listed, _, _ = rest.partition("\n\n")
    return [line.split()[0] for line in listed.splitlines()]


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    assert exited.value.code == 0
    text = capsys.readouterr().out
    assert commands_of(text) == COMMANDS
    assert "\n    status    say what became of each run of a sweep\n" in text
    assert "\n  2    a mistake, said in one line\n" in text
    assert max(map(len, text.splitlines())) <= 100
    examples = [line.split()[1] for line in text.splitlines() if line.startswith("  reasonrl ")]
    assert {*examples} == {*COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([command, "--help"])
    assert exited.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: reasonrl {command} ")


def test_older_spellings_have_their_own_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweep.main(["--help"])
    assert commands_of(capsys.readouterr().out) == COMMANDS[4:9]
    with pytest.raises(SystemExit):
        dashboard.main(["--help"])
    assert commands_of(capsys.readouterr().out) == ["html", "mirror", "push"]


@pytest.mark.parametrize(
    "spelling",
    [
        ["-m", "reasonrl.cli.main", "page"],
        ["-m", "reasonrl.sweep", "status"],
        ["-m", "reasonrl.dashboard", "html"],
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(spelling: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *spelling, "--outputs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: outputs={tmp_path} must hold sweeps; there are none. Make one with "
        "python train.py -m, or name the folder with --outputs.\n"
    )


def test_status_imports_nothing_slow(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from reasonrl.cli.main import main\n"
        "main(['status', '--outputs', sys.argv[1]])\n"
        "slow = 'torch transformers hydra datasets numpy matplotlib plotly wandb submitit'\n"
        "print({*slow.split()} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
