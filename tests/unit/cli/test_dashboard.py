"""The workspace in W&B: what it asks for is there; saving it needs a login."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasonrl.report.workspace import AXES, NAME, push, workspace
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT, small_config
from tests.helpers.fake_wandb import serving

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None,
    reason="the wandb-workspaces package isn't installed",
)
SOURCES = "\n".join(
    file.read_text()
    for file in (ROOT / "reasonrl").rglob("*.py")
    if file.name != "workspace.py" and "config" not in file.parts  # these only declare what is seen
)
FINAL = ("eval/gain_maj@1", "eval/after_maj@1", "eval/after_pass@1")


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def specification() -> dict[str, Any]:
    """What would be sent."""
    return workspace("team", "project")._spec


def panels(specification: dict[str, Any]) -> list[dict[str, Any]]:
    sections = specification["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def test_a_group_of_runs_is_a_cell_of_the_matrix(specification: dict[str, Any]) -> None:
    assert (specification["entity"], specification["project"]) == ("team", "project")
    assert specification["displayName"] == NAME
    (runs,) = specification["spec"]["section"]["runSets"]
    grouped = [(key["section"], key["name"]) for key in runs["grouping"]]
    # W&B keeps {"algorithm": {"value": {"name": "ei"}}}.
    assert grouped == [
        ("config", "algorithm.value.name"),
        ("config", "reward.value.name"),
        ("config", "model.value.name"),
    ]


def test_the_first_section_is_the_matrix_and_its_margins(specification: dict[str, Any]) -> None:
    first = specification["spec"]["section"]["panelBankConfig"]["sections"][0]
    assert (first["name"], first["isOpen"]) == (NAME, True)
    bars = [panel["config"] for panel in first["panels"]]
    assert [bar["metrics"] for bar in bars[:3]] == [
        ["eval/after_maj@1"],
        ["eval/after_pass@1"],
        ["eval/gain_maj@1"],
    ]
    assert [(bar["metrics"], bar["groupBy"]) for bar in bars[3:]] == [
        (["eval/after_maj@1"], "algorithm.value.name"),
        (["eval/after_maj@1"], "reward.value.name"),
        (["eval/after_maj@1"], "model.value.name"),
    ]


def test_an_algorithm_s_section_has_what_it_declares(specification: dict[str, Any]) -> None:
    sections = specification["spec"]["section"]["panelBankConfig"]["sections"]
    drawn = {
        section["name"]: [
            (p["config"]["xAxis"], *p["config"]["metrics"]) for p in section["panels"]
        ]
        for section in sections[1:-1]
    }
    assert drawn == {
        "validation": [
            ("step", "eval/validation_maj@1"),
            ("ei/rollouts", "eval/validation_maj@1"),
            ("pg/rollouts", "eval/validation_maj@1"),
        ],
        "learning": [
            ("step", "sft/loss"),
            ("step", "ei/loss"),
            ("step", "rcrl/loss"),
            ("step", "orm/loss"),
            ("step", "sorm/loss"),
        ],
        "ei": [
            ("ei/rollouts", "rollout/correct"),
            ("ei/rollouts", "ei/new_solutions"),
            ("ei/rollouts", "ei/problems_solved"),
        ],
        "ppo": [
            ("pg/rollouts", "rollout/correct"),
            ("pg/rollouts", "pg/kl"),
            ("pg/rollouts", "pg/entropy"),
            ("pg/rollouts", "pg/explained_variance"),
            ("pg/rollouts", "pg/clip_fraction"),
            ("pg/rollouts", "pg/approx_kl"),
            ("pg/rollouts", "rollout/mean_length"),
            ("pg/rollouts", "rollout/finish_length"),
        ],
        "rcrl": [("step", "rcrl/conditioning_gap")],
    }


def test_all_that_is_drawn_is_logged(specification: dict[str, Any]) -> None:
    configs = [panel["config"] for panel in panels(specification)]
    names = {name for config in configs for name in config.get("metrics", [])}
    names |= {config["xAxis"] for config in configs if "xAxis" in config}
    assert len(names) > 20
    for name in names - {"step", *FINAL}:
        prefix, _, rest = name.partition("/")
        spelled = (f'"{name}"', f'"{rest}"', f"}}/{rest}")
        assert any(text in SOURCES for text in spelled), name
        assert prefix in ("eval", "rollout", "sft", "ei", "pg", "rcrl", "orm", "sorm")


def test_the_axes_are_in_every_configuration(tmp_path: Path) -> None:
    config: Any = small_config(tmp_path)
    for key in AXES.values():
        group, name = key.split(".")
        assert getattr(getattr(config, group), name)


def pushed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reasonrl.dashboard", "push", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_push_saves_it() -> None:
    with serving() as server:
        process = pushed(
            "--entity=team", "--project=p", WANDB_API_KEY="01234567" * 5, WANDB_BASE_URL=server.url
        )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == f"{server.url}/team/p?nw=abc"
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "p", NAME)
    assert "eval/after_maj@1" in view["spec"]


def test_push_without_a_login_says_so() -> None:
    process = pushed()
    assert process.returncode == 2
    assert process.stderr == "error: push must have a W&B login; got none. Run wandb login.\n"


def test_push_with_a_key_that_can_be_none_says_so() -> None:
    process = pushed(WANDB_API_KEY="short")
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert process.stderr.endswith(
        "error: push must have a W&B login; got none. Run wandb login.\n"
    )


def test_push_without_the_packages_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install wandb wandb-workspaces\.$"):
        push(None, "project")
