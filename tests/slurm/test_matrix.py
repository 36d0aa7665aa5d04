"""The whole matrix by one command on a real SLURM, and what W&B and the page make of requeues."""

import json
import re
from pathlib import Path

import pytest

from reasonrl.cli.dashboard import write_page
from reasonrl.runs.folder import read_status
from reasonrl.runs.metrics_log import STAMPS, read_metrics, without
from reasonrl.sweep.status import look
from tests.helpers.wandb_folder import history
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import WAIT, all_done, sweep_of, train, wait_until

SMALLER = {  # than the defaults, so that a run takes seconds
    "conf/policy_gradient/default.yaml": {"rollouts_per_iteration": 16, "batch_size": 8},
    "conf/by_scale/policy_gradient/small.yaml": {"iterations": 2, "validate_every": 1},
    "conf/by_scale/ei/small.yaml": {"rounds": 1},
}


@pytest.mark.slow
@pytest.mark.usefixtures("login")
def test_the_matrix_runs_to_the_end_and_makes_what_it_needs_once(project: Path) -> None:
    for file, values in SMALLER.items():
        text = (project / file).read_text()
        for key, value in values.items():
            text, found = re.subn(rf"^{key}: .*", f"{key}: {value}", text, flags=re.MULTILINE)
            assert found == 1
        (project / file).write_text(text)
    matrix = ["algorithm=ei,ppo,rcrl", "reward=sparse,dense,orm,sorm"]
    train(project, *matrix, "hydra.launcher.mem_gb=2")
    sweep = sweep_of(project)
    assert sum(member.overrides is not None for member in sweep.runs) == 3 * 4
    # SFT; completions of the sparse EI policy, what becomes of their steps, for SORM (of one
    # solution) and for RCRL (of four), and both reward models.
    needed = sorted(m.name.split("-")[0] for m in sweep.runs if m.overrides is None)
    assert needed == ["orm", "sample", "sft", "sorm", "steps", "steps"]
    wait_until(sweep, all_done)
    folders = {folder.name for folder in (sweep.outputs / "runs").iterdir()}
    assert folders == {member.name for member in sweep.runs}
    assert {read_status(sweep.run(name)).attempt for name in folders} == {1}


def test_after_three_requeues_wandb_and_the_page_have_each_step_once(
    login: Cluster, project: Path, faults: Path
) -> None:
    steps = 12
    wandb = ["tracking=wandb", "tracking.mode=offline"]
    login.run("scontrol", "update", "PartitionName=high", "State=DOWN")
    train(project, "algorithm=sft", f"algorithm.epochs={steps}", *wandb, "hydra.launcher.mem_gb=2")
    sweep = sweep_of(project)
    (member,) = sweep.runs
    run, order, waiting = (
        sweep.run(member.name),
        faults / member.name,
        faults / f"{member.name}.waiting",
    )
    order.write_text("wait")
    login.run("scontrol", "update", "PartitionName=high", "State=UP")
    for attempt, signal in enumerate(("USR2", "TERM", "USR2"), start=1):
        login.wait(waiting.exists, f"attempt {attempt} has begun", WAIT)
        assert read_status(run).attempt == attempt
        waiting.unlink()
        order.write_text("wait" if attempt < 3 else "nothing")
        (job,) = (finding.job for finding in look(sweep))
        login.run("scancel", f"--signal={signal}", job)
    wait_until(sweep, all_done)
    assert read_status(run).attempt == 4

    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines] == [*range(1, steps + 1)]
    rows = history(run)
    assert [without(STAMPS, row) for row in rows if "step" in row] == lines
    page = write_page(sweep.path, None).read_text()
    (data,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL
    )
    (shown,) = json.loads(data)["runs"]
    for name in ("sft/loss", "sft/grad_norm", "sft/learning_rate"):
        assert shown["curves"][name]["values"] == [line[name] for line in lines]
        assert shown["curves"][name]["step"] == [*range(1, steps + 1)]
