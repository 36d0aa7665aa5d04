"""What the entry points do before they begin: help at once, and libraries that keep quiet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from reasonrl.util.entry_point import _explain, decoded, left_to_runs

ROOT = Path(__file__).parents[3]
# Runs a command with --help, and says on stderr which packages, but Python's own, it has imported.
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
before = {*sys.modules}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    packages = {name.partition(".")[0] for name in {*sys.modules} - before}
    print(*sorted(packages - sys.stdlib_module_names), file=sys.stderr)
"""


def output(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("command", ["train.py", "evaluate.py"])
def test_help_is_there_at_once(command: str) -> None:
    """It imports what it composes and prints with, of which each takes a tenth of a second or less.

    Seconds aren't held to a number: of a machine that is busy a process takes five times as many.
    """
    imported = output("-c", HELP, command).stderr.split()
    ours = {"reasonrl", "hydra", "hydra_plugins", "omegaconf", "antlr4", "filelock", "packaging"}
    light = ours | {"rich", "yaml", "_yaml", "cython_runtime"}
    assert {name for name in imported if not name.startswith("_cython_")} <= light


def choices(command: str) -> dict[str, str]:
    """The groups that a command's help lists, each with its options."""
    _, _, rest = output(command, "--help").stdout.partition("Choose one of each (GROUP=OPTION):\n")
    listed, _, _ = rest.strip("\n").partition("\n\n")
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in listed.splitlines()}


def test_help_lists_what_can_be_chosen() -> None:
    """And not conf/learner, of which other files are made."""
    found = choices("train.py")
    groups = "algorithm budget dataset experiment init model prompt reward sampler scale tracking"
    assert list(found) == groups.split()
    for group, options in found.items():
        assert options.split(", ") == sorted(f.stem for f in (ROOT / "conf" / group).iterdir())
    assert found["tracking"] == "none, wandb"


def test_help_of_evaluate_lists_only_its_own_groups() -> None:
    assert list(choices("evaluate.py")) == ["dataset", "model", "prompt", "sampler", "scale"]


def test_transformers_keeps_quiet_at_work() -> None:
    """Its level is set before it is imported; a variable of the user's own comes first."""
    code = (
        "from reasonrl.util.entry_point import set_up_logging\n"
        "set_up_logging()\n"
        "from transformers.utils import logging\n"
        "print(logging.get_verbosity(), logging.is_progress_bar_enabled())"
    )
    assert output("-c", code).stdout == "40 False\n"  # logging.ERROR
    told = os.environ | {"TRANSFORMERS_VERBOSITY": "info"}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=told)
    assert shown.stdout == "20 False\n"


def test_the_hubs_library_keeps_quiet_about_its_attempts() -> None:
    """It sets its level when it is imported, so that a level set before is lost."""
    code = (
        "from reasonrl.util.entry_point import set_up_logging\n"
        "set_up_logging()\n"
        "from huggingface_hub import HfApi\n"
        "import logging\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')"
    )
    assert output("-c", code).stderr == ""


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        (r'dataset.prompt="Q: {question}\nA:"', 'dataset.prompt="Q: {question}\nA:"'),
        (r'dataset.stop=["\n\n","\tQ:"]', 'dataset.stop=["\n\n","\tQ:"]'),
        (r"dataset.prompt=\\nu {question}", r"dataset.prompt=\nu {question}"),
        (r"dataset.path=C:\new", r"dataset.path=C:\new"),
        ("algorithm=ei", "algorithm=ei"),
    ],
)
def test_escapes_in_prompts_are_what_they_mean(argument: str, meant: str):
    assert decoded(argument) == meant


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (
            ["-m", "algorithm=ppo,grpo", "algorithm.kl_coef=0.1", "reward.threshold=1", "seed=0,1"],
            ["algorithm.kl_coef=choice(0.1)"],
        ),
        (["algorithm.stop=[1,2]", "algorithm=a,b", "--multirun"], ["algorithm.stop=choice([1,2])"]),
        (["-m", "reward=a,b", "reward.path=x.py:f"], ["reward.path=choice(x.py:f)"]),
        (["-m", "algorithm=a,b", "+algorithm.new=1", "~algorithm.old"], []),
        (["-m", "algorithm=a,b", "algorithm.epochs=1,2", "seed=("], []),
        (["-m", "algorithm=a,b", "algorithm.epochs=1", "hydra/sweeper=optuna"], []),
        (["algorithm=ppo", "algorithm.kl_coef=0.1"], []),
    ],
)
def test_keys_of_what_is_swept_are_left_to_the_runs(arguments: list[str], left: list[str]) -> None:
    assert [a for a in left_to_runs(arguments) if a not in arguments] == left
    assert len(left_to_runs(arguments)) == len(arguments)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompt.system=x", "It is a key of prompt=chat. prompt has no keys as it is."),
        (
            "algorithm.clip_range=0.1",
            "It is a key of algorithm=dapo, algorithm=dr_grpo, algorithm=grpo, algorithm=maxrl, "
            "algorithm=ppo, algorithm=reinforce, algorithm=rloo, algorithm=vineppo. algorithm has",
        ),
        ("reward.function_weight=1", "It is a key of reward=function. reward has the keys "),
        ("runtime.zzz=1", "runtime.zzz must be a known key. runtime has the keys "),
        ("hydra.launcher.zzz=1", "hydra.launcher.zzz must be a known key. hydra.launcher has the "),
        ("prompt.sytem=x", "prompt.sytem must be a known key. prompt has no keys as it is."),
    ],
)
def test_a_key_of_another_option_names_the_option(override: str, said: str) -> None:
    config_dir = initialize_config_dir(str(ROOT / "conf"), version_base="1.3")
    with pytest.raises(HydraException) as error, config_dir:
        compose("train", [override])
    assert said in _explain(error.value)  # as after Hydra has ended
