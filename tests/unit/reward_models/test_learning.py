"""Learning a reward model: what is held out, what is learnt and kept, and how it is judged.

``job_of`` is a job on three problems of two calculations, from a tiny model with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl import job as job_module
from reasonrl.config.schema import TrainConfig
from reasonrl.problems.prompts.plain import Plain
from reasonrl.reward_models import learning as reward_learning
from reasonrl.reward_models.learning import (
    held_out_questions,
    learn_reward_model,
    validation_estimates,
)
from reasonrl.reward_models.model import RewardModel, question_hash
from reasonrl.reward_models.network import Labelled
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.sampling.rollouts import write_rollouts
from reasonrl.types import Completion, Problem, Prompt, Rollout
from reasonrl.util.errors import UserError
from tests.helpers.grading import STRICT
from tests.helpers.jobs import (
    CPU,
    TRAIN,
    VALIDATION,
    job_of,
    refuse,
    right,
    sampled,
    write_samples,
    wrong,
)

# --- what is held out


def of_questions(*how_many: int) -> list[Rollout]:
    """So many rollouts of each question."""
    completion = Completion("", 0, (7,), (-0.5,), "eos", "")
    return [
        Rollout(Prompt(f"q{i}", (1,)), completion, None, False, (0.0,))
        for i, count in enumerate(how_many)
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("questions", "share", "held_out"),
    [(20, 0.1, 2), (20, 0.5, 10), (20, 0.01, 1), (4, 0.99, 3), (2, 0.1, 1), (3, 0.34, 1)],
)
def test_a_share_of_the_questions_is_held_out(questions: int, share: float, held_out: int) -> None:
    assert len(held_out_questions(of_questions(*[2] * questions), share, seed=0)) == held_out


def test_what_is_held_out_is_decided_by_the_questions_and_the_seed() -> None:
    rollouts = of_questions(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    drawn = held_out_questions(rollouts, 0.3, seed=0)
    assert drawn < {f"q{i}" for i in range(10)}
    assert held_out_questions(rollouts[::-1], 0.3, seed=0) == drawn
    assert held_out_questions(of_questions(*[1] * 10), 0.3, seed=0) == drawn
    assert any(held_out_questions(rollouts, 0.3, seed) != drawn for seed in (1, 2, 3))


# --- what is read and learnt


def test_samples_are_read_behind_the_question_alone(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> None:
    empty = sampled(tokenizer, TRAIN[1], [""], "stop")
    write_rollouts(tmp_path / "train.parquet", [*sampled(tokenizer, TRAIN[0], ["#### 20"]), *empty])
    unanswered = sampled(tokenizer, VALIDATION[0], [""], "stop")
    write_rollouts(tmp_path / "validation.parquet", unanswered)
    with job_of(
        configure("algorithm=orm"), random_policy, tmp_path / "run", tmp_path, few_shot=True
    ) as job:
        train, validation = (job.samples(split) for split in ("train", "validation"))
    asked = tokenizer("Q: Ana has 2 apples. Then Ben gives Ana 3 apples. Tom has 4 apples.\nA:")
    assert train[0].prompt == Prompt("t0", tuple(asked["input_ids"]))
    assert [r.prompt.problem_id for r in train] == ["t0", "t1"]
    assert [len(r.completion.token_ids) for r in validation] == [0]


def labelled(tokenizer: PreTrainedTokenizerBase, problem: Problem, text: str) -> Labelled:
    (rollout,) = sampled(tokenizer, problem, [text])
    length = len(rollout.completion.token_ids)
    return Labelled((5, 5), tuple(rollout.completion.token_ids), (float(rollout.correct),) * length)


@pytest.mark.parametrize(("kind", "counts"), [(right, "2 good and 0 bad"), (wrong, "0 good and 2")])
def test_labels_of_one_kind_teach_nothing(
    kind: Callable,
    counts: str,
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> None:
    (row,) = sampled(tokenizer, TRAIN[0], ["#### 1"])
    one = Labelled((5,), (7, 8), (1.0 if kind is right else 0.0, None))
    with job_of(configure("algorithm=orm"), random_policy, tmp_path / "run", tmp_path) as job:
        with pytest.raises(UserError, match=f"must have good and bad labels .* {counts}"):
            learn_reward_model(
                job,
                job.config.algorithm,
                [one, one],
                [(row, (0.0,) * len(row.completion.token_ids))],
            )
        assert not job.run.reward_model.exists()
        assert not job.work.exists()


def test_there_must_be_labels_to_calibrate_on(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> None:
    (row,) = sampled(tokenizer, TRAIN[0], [""])  # EOS: no step, so no label
    learnt = [labelled(tokenizer, TRAIN[0], kind(TRAIN[0])) for kind in (right, wrong)]
    with job_of(configure("algorithm=sorm"), random_policy, tmp_path / "run", tmp_path) as job:
        for held_out in ([], [(row, (None,))]):
            with pytest.raises(UserError, match=r"held_out=0.1 must leave labels to calibrate on"):
                learn_reward_model(job, job.config.algorithm, learnt, held_out)
        assert not job.run.reward_model.exists()


def test_a_reward_model_is_learnt_calibrated_saved_and_judged(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts = write_samples(tmp_path / "rollouts", tokenizer, right, wrong)
    learnt = [labelled(tokenizer, p, kind(p)) for p in TRAIN[:2] for kind in (right, wrong)]
    held_out = [
        (r, (None,) * (len(r.completion.token_ids) - 1) + (float(r.correct),))
        for r in sampled(tokenizer, TRAIN[2], [right(TRAIN[2]), wrong(TRAIN[2])])
    ]
    calibrated: list[Any] = []
    calibrate = reward_learning.calibrate

    def recording(*given: Any) -> tuple[float, float]:
        calibrated.append(given[1:])
        return calibrate(*given)

    monkeypatch.setattr(reward_learning, "calibrate", recording)
    config = configure("algorithm=orm", "algorithm.batch_size=2", "algorithm.epochs=3")
    with job_of(config, random_policy, tmp_path / "run", rollouts) as job:
        learn_reward_model(job, job.config.algorithm, learnt, held_out)
        logged = read_metrics(job.run.metrics)
        # Four completions in batches of two, three times; then the calibration.
        assert [m["step"] for m in logged] == [1, 2, 3, 4, 5, 6, 6]
        assert all("orm/loss" in m for m in logged[:-1])
        assert "orm/calibration_temperature" in logged[-1]
        ((logits, labels),) = calibrated
        assert labels.tolist() == [1.0, 0.0]  # of the last tokens alone

        model = RewardModel.load(job.run.reward_model, "float32", CPU)
        assert model.form == Plain("Q: {question}\nA:")
        # Those held out too: it was calibrated on them.
        assert model.questions == {question_hash(p.question) for p in TRAIN}
        temperature, bias = (
            logged[-1][f"orm/calibration_{name}"] for name in ("temperature", "bias")
        )
        kept = model.token_logits([r.completion for r, _ in held_out], [TRAIN[2]] * 2)
        assert [of[-1] for of in kept] == pytest.approx(logits / temperature + bias, abs=1e-4)

        folder = job.run.evaluation / "validation"
        assert pq.read_table(folder / "verdicts.parquet").num_rows == 4
        (folder / "verdicts.parquet").unlink()
        monkeypatch.setattr(job_module, "fit", refuse)
        # As after a kill in the report.
        learn_reward_model(job, job.config.algorithm, learnt, held_out)
        assert pq.read_table(folder / "verdicts.parquet").num_rows == 4


# --- how it is judged


class Judge:
    """Finds the probabilities it is told, whatever it reads."""

    def __init__(self, *probabilities: Sequence[float]) -> None:
        self.probabilities = [np.array(p, dtype=float) for p in probabilities]

    def token_probabilities(self, *_: object) -> list[np.ndarray]:
        return self.probabilities


def test_a_verdict_of_each_validation_sample_is_kept(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> None:
    # v0: 1+2=3, 3*3=9. v1: 2+2=4, 4*5=20. " 1+2=3\n3+3=6\n#### 6" and EOS has 17 tokens, its steps
    # end with 6, 12 and 16.
    rollouts = [
        *sampled(tokenizer, VALIDATION[0], [" 1+2=3\n3+3=6\n#### 6", "#### 9"]),
        *sampled(tokenizer, VALIDATION[1], ["", "#### 20"], "stop"),
    ]
    write_rollouts(tmp_path / "validation.parquet", rollouts)
    doubtful = [0.9] * 17
    doubtful[12] = doubtful[16] = 0.4
    judging = Judge(doubtful, [0.1, 0.2, 0.3, 0.8], [], [0.1, 0.2, 0.3, 0.6, 0.45])
    with job_of(configure("algorithm=orm"), random_policy, tmp_path / "run", tmp_path) as job:
        reward_learning.write_validation(job, judging)  # type: ignore[arg-type]
        folder = job.run.evaluation / "validation"
    columns = ("problem_id", "sample_index", "correct", "probability")
    steps = ("first_wrong_step", "predicted_first_wrong_step")
    rows = [tuple(v.values()) for v in pq.read_table(folder / "verdicts.parquet").to_pylist()]
    assert pq.read_schema(folder / "verdicts.parquet").names == [*columns, *steps]
    assert rows == [
        ("v0", 0, False, 0.4, 1, 1),  # 3+3=6, where the probability falls below a half
        ("v0", 1, True, 0.8, None, None),
        ("v1", 0, False, 0.0, 0, 0),  # an empty completion is wrong from the start
        ("v1", 1, True, 0.45, None, None),
    ]
    estimates = json.loads((folder / "metrics.json").read_text())["estimates"]
    values = {name: estimate["value"] for name, estimate in estimates.items()}
    assert values["accuracy"] == 0.75  # all but the last
    assert values["first_wrong_step"] == 1.0
    assert values["auroc"] == 1.0  # 0.45 and 0.8 above 0 and 0.4
    assert values["rerank@2"] == 1.0


def test_where_no_step_is_doubted_the_last_is_the_first_wrong_one(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Of a completion that is wrong as a whole something must be, and the answer is the last."""
    asked = SimpleNamespace(tokenizer=tokenizer, grader=STRICT)
    (rollout,) = sampled(tokenizer, VALIDATION[0], [" 1+2=3\n3+3=6\n#### 6"])

    def predicted(probabilities: Sequence[float]) -> int:
        verdict = reward_learning._verdict(
            asked,  # type: ignore[arg-type]
            rollout,
            VALIDATION[0],
            np.array(probabilities),
        )
        return int(verdict["predicted_first_wrong_step"])

    assert predicted([0.9] * 17) == 2
    assert predicted([0.5] * 17) == 2  # a half isn't below a half
    assert predicted([0.9] * 6 + [0.4] + [0.9] * 10) == 0


# Right answers: 2 of 4 and 1 of 4. Of the wrong ones three give 2 and two give nothing.
SAMPLES = [(True, "20"), (True, "20"), (False, "2"), (False, None)]
SAMPLES += [(True, "16"), (False, "2"), (False, "2"), (False, None)]


def judged(probability: Callable[[bool], float]) -> dict[str, float]:
    """What ``validation_estimates`` says of SAMPLES; of a wrong one step 1 is the first wrong."""
    rollouts, verdicts = [], []
    for place, (correct, answer) in enumerate(SAMPLES):
        name, index = f"t{place // 4}", place % 4
        completion = Completion(name, index, (7,), (-0.5,), "eos", "")
        rollouts.append(Rollout(Prompt(name, (1,)), completion, answer, correct, (0.0,)))
        steps = {"first_wrong_step": 1, "predicted_first_wrong_step": index - 1}
        verdict = {"problem_id": name, "correct": correct, "probability": probability(correct)}
        verdicts.append(verdict | ({} if correct else steps))
    return {
        name: e.value
        for name, e in validation_estimates(rollouts, TRAIN[:2], verdicts, STRICT).items()
    }


def test_an_oracle_chooses_as_well_as_can_be() -> None:
    values = judged(float)
    # Of the first problem's two wrong samples one is found (index 2), of the second's three, one.
    assert values == pytest.approx(
        {
            "accuracy": 1.0,
            "auroc": 1.0,
            "calibration_error": 0.0,
            "first_wrong_step": 2 / 5,  # of all wrong ones, not a mean of 1/2 and 1/3
            "maj@4": 0.5,  # 20 leads 2, 2 leads 16
            "pass@1": 3 / 8,
            "pass@2": (5 / 6 + 1 / 2) / 2,  # 1 - C(2,2) / C(4,2), 1 - C(3,2) / C(4,2)
            "pass@4": 1.0,
            "rerank@4": 1.0,
            "weighted_maj@4": 1.0,
        }
    )


def test_a_constant_chooses_as_well_as_chance() -> None:
    values = judged(lambda _: 0.4)
    assert values["rerank@4"] == pytest.approx(3 / 8)
    assert values["weighted_maj@4"] == values["maj@4"] == 0.5
    assert values["auroc"] == 0.5
    assert values["accuracy"] == pytest.approx(5 / 8)  # 5 of 8 are wrong, as it says
    assert values["calibration_error"] == pytest.approx(0.4 - 3 / 8)


def test_a_half_doesn_t_say_that_a_completion_is_right() -> None:
    assert judged(lambda _: 0.5)["accuracy"] == pytest.approx(5 / 8)  # the wrong ones


def test_a_reversed_model_chooses_worse_than_chance() -> None:
    values = judged(lambda correct: 1.0 - correct)
    names = ("accuracy", "auroc", "rerank@4", "weighted_maj@4")
    assert [values[name] for name in names] == [0.0] * 4
    assert values["calibration_error"] == 1.0


def test_an_auroc_of_few_problems_is_given_no_interval(caplog: pytest.LogCaptureFixture) -> None:
    judged(float)
    assert "the AUROC has no interval but [0, 1]: too few of the validation" in caplog.text


def test_samples_that_are_all_right_have_no_auroc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SAMPLES", [(True, "20")] * 4 + [(True, "16")] * 4)
    values = judged(float)
    assert {"auroc", "calibration_error", "first_wrong_step"}.isdisjoint(values)
    assert values["accuracy"] == values["rerank@4"] == 1.0
