"""What runs were given to learn from, and when it is too unequal for them to be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonrl.cli.runs import QUANTITIES as OFFERED
from reasonrl.config.identity import prerequisites
from reasonrl.report.budget import QUANTITIES, Budget, budget_of, unequal
from reasonrl.runs.folder import RunFolder, run_folder, write_config
from tests.helpers.configs import small_config


def log(run: RunFolder, *records: dict[str, float]) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))


def sampled(run: RunFolder, name: str, *lengths: int) -> None:
    run.rollouts.mkdir(parents=True, exist_ok=True)
    ids = pa.array([[7] * length for length in lengths], pa.list_(pa.int32()))
    pq.write_table(pa.table({"token_ids": ids}), run.rollouts / name)


def test_a_run_s_budget_counts_the_run_that_it_starts_from(tmp_path: Path) -> None:
    config = small_config(tmp_path, "dataset.train_size=100")
    run, sft = run_folder(config), run_folder(prerequisites(config)["init"])
    assert budget_of(run, config) is None
    log(
        run,
        {"step": 0, "ei/round": 0, "ei/rollouts": 0},
        {"step": 9, "ei/loss": 0.5},
        {"step": 10, "ei/round": 1, "ei/rollouts": 800, "rollout/mean_length": 20.5},
        {"step": 25, "ei/round": 2, "ei/rollouts": 1600, "rollout/mean_length": 30.0},
    )
    assert budget_of(run, config) is None  # nothing is known of what it starts from
    log(sft, {"step": 1, "sft/loss": 2.0}, {"step": 40, "sft/loss": 1.0})
    # 800 · 20.5 + 800 · 30
    assert budget_of(run, config) == Budget(questions=100, samples=1600, steps=65, tokens=40_400)


def test_ppo_s_validations_are_no_samples(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, "algorithm=ppo", "init=pretrained", "dataset.reward_train_size=300"
    )
    log(
        run_folder(config),
        {"step": 0, "pg/rollouts": 0, "eval/validation_maj@1": 0.1},
        {"step": 0, "pg/rollouts": 64, "rollout/mean_length": 10.0},
        {"step": 8, "pg/rollouts": 128, "rollout/mean_length": 12.5},
        {"step": 16, "pg/rollouts": 128, "eval/validation_maj@1": 0.2},
    )
    assert budget_of(run_folder(config), config) == Budget(300, 128, 16, 1440)
    # what a baseline samples is
    (run_folder(config).rollouts / "baselines").mkdir(parents=True)
    sampled(run_folder(config), "baselines/iteration-00001.parquet", 5, 7)
    assert budget_of(run_folder(config), config) == Budget(300, 130, 16, 1452)


def test_rcrl_pays_for_its_completions_and_their_steps_once(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        *("algorithm=rcrl", "algorithm.policy=null", "init=pretrained"),
        *("dataset.train_size=50", "dataset.reward_train_size=null"),
    )
    log(run_folder(config), {"step": 30, "rcrl/loss": 1.0})
    needed = prerequisites(config)
    sampled(run_folder(needed["rollouts"]), "train.parquet", 5, 7, 0)
    sampled(run_folder(needed["rollouts"]), "validation.parquet", 90, 90)
    sampled(run_folder(needed["steps"]), "continuations.parquet", 1, 2, 3, 4)
    # The steps are of the same completions, which count once; reward_train_size=null is train_size.
    assert budget_of(run_folder(config), config) == Budget(50, 7, 30, 22)


def test_a_run_that_was_started_from_by_its_folder_counts(tmp_path: Path) -> None:
    first = small_config(tmp_path, "algorithm=sft", "dataset.train_size=70")
    folder = run_folder(first)
    log(folder, {"step": 11, "sft/loss": 1.0})
    config = small_config(tmp_path, "init=run", f"init.run={folder.path}")
    log(run_folder(config), {"step": 4, "ei/round": 1, "ei/rollouts": 24, "rollout/mean_length": 2})
    assert budget_of(run_folder(config), config) == Budget(
        12, 24, 4, 48
    )  # its folder can't be read
    write_config(folder, first)
    assert budget_of(run_folder(config), config) == Budget(70, 24, 15, 48)


def test_a_damaged_log_leaves_the_budget_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(tmp_path, "algorithm=sft")
    log(run_folder(config), {"step": 3, "sft/loss": 1.0})
    assert budget_of(run_folder(config), config) == Budget(12, 0, 3, 0)
    run_folder(config).metrics.write_text("nonsense\n")
    assert budget_of(run_folder(config), config) is None
    assert "metrics.jsonl:1 must be a JSON object" in caplog.text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Budget(1000, 16_000, 400, 500_000), {}),
        (Budget(1100, 14_600, 364, 550_000), {}),  # 1.0959 and 1.0989 times as many
        (
            Budget(1101, 16_000, 160, 500_000),
            {
                "questions": "questions: 1,000 of a, 1,101 of b, 1.1 times as many",
                "steps": "steps: 160 of b, 400 of a, 2.5 times as many",
            },
        ),
        (
            Budget(None, 0, 400, 500_000),
            {
                "questions": "questions: 1,000 of a, all of b",
                "samples": "samples: 0 of b, 16,000 of a",
            },
        ),
        (None, {}),
    ],
)
def test_budgets_are_equal_to_a_tenth(other: Budget | None, said: dict[str, str]) -> None:
    assert unequal({"a": Budget(1000, 16_000, 400, 500_000), "b": other}) == said


def test_all_of_two_data_sets_is_equal() -> None:
    both = Budget(None, 1, 1, 1)
    assert unequal({"a": both, "b": both}) == {}
    assert (both + Budget(5, 1, 2, 3)) == Budget(None, 2, 3, 4)
    assert Budget(8, 1, 1, 1) + Budget(5, 1, 2, 3) == Budget(8, 2, 3, 4)


def test_the_command_line_offers_what_there_is() -> None:
    assert OFFERED == QUANTITIES == ("questions", "samples", "steps", "tokens")
