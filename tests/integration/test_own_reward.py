"""A run with a reward of one's own: planned, made, found again, and another one on another file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import Planner, plan
from reasonrl.runs.folder import is_done, read_config
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, small_config

PAGE = (ROOT / "docs" / "own-rewards.md").read_text(encoding="utf-8")
COMMAND = re.findall(r"^```bash\npython train.py (.+?)\n```", PAGE, re.DOTALL | re.MULTILINE)
FUNCTION = "def score(problem, completion, answer):\n    return {}\n"
SMALL = ["init=pretrained", "algorithm.num_samples_per_prompt=[2]", "algorithm.rounds=1"]
SMALL += ["algorithm.epochs=1", "reward.threshold=0.5", "evaluation.num_samples_per_prompt=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the page's file."""
    (code,) = re.findall(r"^```python title=my_reward.py\n(.+?)^```", PAGE, re.DOTALL | re.M)
    (tmp_path / "my_reward.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(folder: Path, *overrides: str) -> TrainConfig:
    (command,) = COMMAND
    model = f"model.path={ROOT / 'models' / 'tiny'}"
    return small_config(folder / "outputs", *shlex.split(command), model, *SMALL, *overrides)


def test_a_run_keeps_what_scored_it_and_is_found_again(folder: Path) -> None:
    planned = plan(configured(folder))
    run = ensure_done(planned, Progress())
    mine = folder / "my_reward.py"
    assert (run.path / "reward.py").read_text() == mine.read_text()
    scores = pq.read_table(run.rollouts / "round-1.parquet")["score"].to_pylist()
    assert {0.25, 0.5} & {*scores}  # no outcome is worth that
    assert read_config(run).reward.path == "my_reward.py:score"
    moved = mine.rename(folder / "moved.py")
    assert is_done(plan(configured(folder, f"reward.path={moved}:score")).run)
    mine.write_text(FUNCTION.format(0))
    other = plan(configured(folder)).run
    assert other.path != run.path
    assert not is_done(other)
    # An attempt that was planned with what stood there before.
    with pytest.raises(UserError) as refused:
        plan(read_config(run))
    assert str(refused.value) == (
        "reward.path=my_reward.py:score must hold what it held when the run was planned; it holds "
        "something else by now. Put that back, or give the command again: it makes another run."
    )


def test_it_is_tried_before_anything_is_computed(folder: Path) -> None:
    (folder / "my_reward.py").write_text(FUNCTION.format("2"))
    with pytest.raises(UserError, match=r"must return at most 1, .* got 2, for stories-train-0\."):
        plan(configured(folder))


def test_two_functions_of_a_file_are_two_rewards(folder: Path) -> None:
    text = FUNCTION.format(0)
    (folder / "my_reward.py").write_text(text + text.replace("score", "other"))
    planner = Planner()
    one, other = (
        planner.plan(configured(folder, f"reward.path=my_reward.py:{name}"))
        for name in ("score", "other")
    )
    assert one.run.path != other.run.path


def test_an_algorithm_that_reads_no_reward_needs_no_file(folder: Path) -> None:
    (folder / "my_reward.py").unlink()
    sft = [o for o in SMALL if not o.startswith(("algorithm.", "reward."))]
    model = f"model.path={ROOT / 'models' / 'tiny'}"
    own = ["algorithm=sft", "reward=function", "reward.path=my_reward.py:score", model, *sft]
    assert plan(small_config(folder / "outputs", *own)).run.path.name.startswith("sft-tiny-")
