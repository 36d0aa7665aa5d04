"""Warnings of a PPO run: when they come, how often, and that they name what to change."""

import json
import math
import re
from dataclasses import fields

import pytest

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.policy_gradient.diagnosis import Diagnosis
from reasonrl.runs.metrics_log import MetricsLog, read_metrics
from tests.helpers.configs import ROOT

KEYS = {
    "algorithm": {field.name for field in fields(PPOConfig)},
    "dataset": {field.name for field in fields(DatasetConfig)},
}

# A healthy iteration. tiny has 0.06 nats of entropy per token after fine-tuning.
HEALTHY = {
    "pg/iteration": 1,
    "pg/rollouts": 1024,
    "rollout/correct": 0.3,
    "rollout/score": 0.3,
    "rollout/mean_length": 40.0,
    "rollout/finish_length": 0.01,
    "pg/score_std": 0.46,
    "pg/unequal_questions": 0.4,
    "pg/kl": 1.0,
    "pg/kl_coef": 0.05,
    "pg/entropy": 0.06,
    "pg/explained_variance": 0.3,
    "pg/nonzero_advantages": 0.4,
}
SAME = {"pg/score_std": 0.0, "pg/unequal_questions": 0.0}

# What goes wrong in a single iteration, and the words of its message.
KL = ({"pg/kl": 21.0}, "KL to the reference is 21 nats per completion of 40 tokens, above 0.5")
ENTROPY = ({"pg/entropy": 0.005}, "Entropy is 0.005 nats per token, 0.06 in the first")
NONE_RIGHT = (
    SAME | {"rollout/correct": 0.0, "rollout/score": 0.0},
    "All samples score 0, 0.0% are right",
)
ALL_RIGHT = (
    SAME | {"rollout/correct": 1.0, "rollout/score": 1.0},
    "All samples are right, and score 1 on average",
)
ALIKE = ({"pg/unequal_questions": 0.0}, "The 4 samples of each question all score the same, 30.0%")
NO_ADVANTAGE = (
    {"pg/nonzero_advantages": 0.0},
    "All advantages are 0, though samples of a question",
)
CUT = ({"rollout/finish_length": 0.204}, "20.4% of completions are cut off, above 20%, and mean")
CRITIC = "Explained variance has been 0 or less for 10 iterations (now -0.13)"


def warnings(*changes, num_samples_per_prompt=4):
    """Of iterations that are healthy but for the given changes, each one's messages."""
    diagnosis = Diagnosis(num_samples_per_prompt)
    return [diagnosis.check(HEALTHY | change) for change in changes]


def explained(*values):
    return [{"pg/explained_variance": value} for value in values]


def first_warned(changes):
    """The number, from 1, of the first iteration with a message; None if there's none."""
    return next((i for i, messages in enumerate(warnings(*changes), start=1) if messages), None)


def test_an_iteration_with_nothing_to_learn_from_says_nothing():
    of_tokens = ("pg/kl", "pg/kl_coef", "pg/entropy", "pg/explained_variance")
    assert Diagnosis(4).check({k: v for k, v in HEALTHY.items() if k not in of_tokens}) == []


def test_a_healthy_run_says_nothing():
    assert warnings(*[{}] * 30) == [[]] * 30


@pytest.mark.parametrize(
    ("change", "words"),
    [KL, ENTROPY, NONE_RIGHT, ALL_RIGHT, ALIKE, NO_ADVANTAGE, CUT],
    ids=lambda v: str(v)[:20],
)
def test_a_condition_is_told_once_while_it_lasts_and_again_when_it_comes_back(change, words):
    told = warnings({}, change, change, {}, change)
    assert [len(messages) for messages in told] == [0, 1, 0, 0, 1]
    assert told[1][0].startswith(words)
    assert told[4] == told[1]


def test_conditions_are_told_apart():
    """One that lasts doesn't hide another that begins, and several may begin together."""
    kl, entropy = KL[0], ENTROPY[0]
    (first,), (second,), third = warnings(kl, kl | {"rollout/finish_length": 0.5}, {})
    assert (first[:2], second[:3], third) == ("KL", "50.", [])
    _, both = warnings({}, kl | entropy)
    assert [message[:7] for message in both] == ["KL to t", "Entropy"]


@pytest.mark.parametrize(
    ("kl", "length", "told"),
    [
        (20.0, 40.0, 0),  # 0.5 · 40 = 20, not above
        (20.1, 40.0, 1),
        (20.1, 80.0, 0),  # 0.5 · 80 = 40
        (0.0, 0.0, 0),  # nothing but empty completions
        (-0.1, 40.0, 0),  # an estimate may be below 0
        (None, 40.0, 1),  # not a number: worse than large
        (math.inf, 40.0, 1),
    ],
)
def test_kl_is_judged_by_the_length(kl, length, told):
    change = {"pg/kl": kl, "rollout/mean_length": length, "pg/entropy": 1.0}
    assert len(warnings(change)[0]) == told


@pytest.mark.parametrize(
    ("first", "then", "length", "told"),
    [
        (0.5, 0.051, 100.0, 0),  # a tenth is 0.05
        (0.5, 0.049, 100.0, 1),
        # A confident start: a tenth is 0.002, but 0.1 nats / 20 tokens = 0.005.
        (0.02, 0.0051, 20.0, 0),
        (0.02, 0.0049, 20.0, 1),
        (0.02, 0.0049, 25.0, 0),  # 0.1 / 25 = 0.004
        (0.02, 0.0, 0.0, 1),  # empty completions: never a division by 0
        (0.02, None, 20.0, 0),
        (None, 0.0049, 20.0, 1),
        (None, 0.0051, 20.0, 0),
    ],
)
def test_entropy_is_judged_by_the_first_iteration_and_a_floor(first, then, length, told):
    of_length = {"rollout/mean_length": length}
    start = HEALTHY | {"pg/entropy": first}
    messages = warnings(start, of_length | {"pg/entropy": then, "pg/kl": 0.0})[1]
    assert len(messages) == told


def test_a_policy_may_start_collapsed():
    (messages,) = warnings({"pg/entropy": 0.002})  # 0.1 nats / 40 tokens = 0.0025
    assert messages[0].startswith("Entropy is 0.002 nats per token, 0.002 in the first iteration")


def test_a_critic_is_dead_after_ten_iterations_that_follow_ten_to_learn_in():
    assert first_warned(explained(*[-0.13] * 30)) == 20
    told = warnings(*explained(*[-0.13] * 30))
    assert [message for messages in told for message in messages] == told[19]
    assert told[19][0].startswith(CRITIC)


@pytest.mark.parametrize(
    ("values", "iteration"),
    [
        ([0.1] * 10 + [0.0] * 10, 20),
        ([0.1] * 10 + [1e-7] * 10, 20),  # a constant critic's, rounded
        ([0.1] * 10 + [0.01] * 20, None),  # little, but something
        ([0.1] * 15 + [-1.0] * 15, 25),
        ([-1.0] * 19 + [0.1] + [-1.0] * 9, None),  # it woke up in time; nine more aren't ten
        ([-1.0] * 19 + [0.1] + [-1.0] * 10, 30),
        ([-1.0] * 15 + [None] * 5 + [-1.0] * 5, 25),  # undefined: neither good nor bad
        ([None] * 30, None),
        ([-math.inf] * 30, None),  # in the log it's null
    ],
)
def test_iterations_that_count_against_a_critic(values, iteration):
    assert first_warned(explained(*values)) == iteration


def test_a_critic_that_dies_again_is_told_again():
    values = [-1.0] * 25 + [0.1] + [-1.0] * 10  # iterations 20 and, after 26, 36
    told = warnings(*explained(*values))
    assert [i for i, messages in enumerate(told, start=1) if messages] == [20, 36]


def test_a_single_sample_has_no_other_to_differ_from():
    alike = {"pg/unequal_questions": 0.0}
    assert warnings(alike, num_samples_per_prompt=1) == [[]]
    ((message,),) = warnings(NONE_RIGHT[0], num_samples_per_prompt=1)
    assert message.startswith(NONE_RIGHT[1])


def test_equal_scores_may_have_a_rounded_deviation():
    ((message,),) = warnings({"pg/score_std": 1e-9, "rollout/score": 0.1})
    assert message.startswith("All samples score 0.1, 30.0% are right")


def test_right_answers_that_score_differently_still_teach():
    assert warnings({"rollout/correct": 1.0, "rollout/score": 1.2}) == [[]]


@pytest.mark.parametrize(("share", "told"), [(0.2, 0), (0.201, 1), (1.0, 1)])
def test_truncation_above_a_fifth(share, told):
    assert len(warnings({"rollout/finish_length": share})[0]) == told


def test_every_key_and_value_named_exists():
    told = warnings({}, KL[0] | ENTROPY[0] | CUT[0], NONE_RIGHT[0], {}, ALIKE[0])
    told += warnings(*explained(*[-1.0] * 20))
    text = " ".join(message for messages in told for message in messages)
    named = set(re.findall(r"\b(algorithm|dataset)\.(\w+)", text))
    assert all(key in KEYS[group] for group, key in named)
    assert {key for _, key in named} == {
        "kl_coef",
        "kl_target",
        "learning_rate",
        "max_approx_kl",
        "entropy_coef",
        "temperature",
        "value_layers",
        "value_learning_rate",
        "detach_value",
        "num_samples_per_prompt",
        "truncation_penalty",
        "max_new_tokens",
    }
    assert {"init", "reward"} <= {field.name for field in fields(TrainConfig)}
    for reward in re.findall(r"reward=(\w+)", text):
        assert (ROOT / "conf" / "reward" / f"{reward}.yaml").exists()
    assert "algorithm.kl_coef (now 0.05)" in text


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    """Wherever it stopped, from all the records of its log, nan and infinity among them."""
    values = [-math.inf, math.nan, *[-1.0] * 12, 0.1, *[-1.0] * 15]
    records = [HEALTHY | change for change in explained(*values)]
    records[4] |= {"pg/kl": math.inf} | ENTROPY[0]
    records[5] |= {"pg/kl": math.nan}
    records[12] |= CUT[0]
    records[13] |= CUT[0] | SAME
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step, record in enumerate(records):
            log.log(step, {"pg/rollouts": 0, "eval/validation_maj@1": 0.3})
            log.log(step, record)
            log.log(step, {"pg/policy_loss": 0.1, "pg/clip_fraction": 0.1})
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert None in [record.get("pg/kl", 0) for record in logged]

    whole = Diagnosis(4)
    expected = [whole.check(record) for record in records]
    assert sum(map(len, expected)) == 5  # KL, entropy, truncation, scores, the critic
    for stopped in range(len(records) + 1):
        resumed = Diagnosis(4)
        for record in logged[: 3 * stopped]:
            resumed.check(record)
        assert [resumed.check(record) for record in records[stopped:]] == expected[stopped:]


def test_a_record_of_anything_else_says_nothing():
    diagnosis = Diagnosis(4)
    assert diagnosis.check({"step": 3, "pg/policy_loss": None}) == []
    assert diagnosis.check(json.loads('{"step": 3, "eval/split": "test"}')) == []
