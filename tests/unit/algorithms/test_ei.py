"""Expert Iteration: what it keeps, what it learns from, which round it returns, how it resumes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl import job as job_module
from reasonrl.algorithms import ei
from reasonrl.config.schema import TrainConfig
from reasonrl.job import Job
from reasonrl.learning.checkpoint import weights_hash
from reasonrl.learning.optimization import Optimization
from reasonrl.learning.supervised import Example
from reasonrl.policy.policy import Policy, load_policy, save_policy
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog, read_metrics, reproducible
from reasonrl.sampling import ENGINES
from reasonrl.types import Completion, Problem, Prompt, Rollout, SavedPolicy
from reasonrl.util.progress import Progress
from tests.helpers.grading import STRICT
from tests.helpers.scripted import EXEMPLARS, TRAIN, VALIDATION, ScriptedSampler, opening

CPU = torch.device("cpu")


def rollout(
    text: str, score: float = 1.0, ids: Sequence[int] = (7,), problem: str = "t0"
) -> Rollout:
    completion = Completion(problem, 0, tuple(ids), (0.0,) * len(ids), "eos", text)
    rewards = (0.0,) * (len(ids) - 1) + (score,)
    return Rollout(Prompt(problem, (1,)), completion, "5", score >= 1.0, rewards)


# --- what is kept


def test_of_the_same_calculations_the_best_is_kept_then_the_shortest() -> None:
    """Under a reward model a shorter completion may score less, or even be wrong."""
    kept = ei.keep_distinct(
        [
            rollout(" 1+4=5\n#### 6", score=0.75, ids=(1,)),
            rollout(" 1+4=5\n#### 5", score=1.5, ids=(2, 2, 2)),
            rollout(" 1+4=5\n#### 5", score=1.5, ids=(3, 3)),
        ],
        STRICT,
        threshold=0.5,
    )
    assert [tuple(r.completion.token_ids) for r in kept.values()] == [(3, 3)]


def test_spellings_of_one_calculation_collapse_and_different_calculations_do_not() -> None:
    kept = ei.keep_distinct(
        [
            rollout(" 1000 + 200 = 1200\n#### 1200", ids=(7, 7, 7)),
            rollout(" 1,000+200=1,200\n#### 1,200", ids=(8, 8)),
            rollout(" Ana has 1000 + 200 = <<1000+200=1200>>1200.\n#### 1200", ids=(9,) * 9),
            rollout(" 200+1000=1200\n#### 1200", ids=(6,) * 5),
            rollout(" 1000+200=1200\n#### 1200", ids=(5,) * 4, problem="t1"),
        ],
        STRICT,
        threshold=1.0,
    )
    # The shortest of the three, the other order of operands, and the other problem's.
    assert {key: tuple(r.completion.token_ids) for key, r in kept.items()} == {
        ("t0", ("1000+200=1200",)): (8, 8),
        ("t0", ("200+1000=1200",)): (6,) * 5,
        ("t1", ("1000+200=1200",)): (5,) * 4,
    }


def test_which_one_is_kept_does_not_depend_on_order() -> None:
    same = [rollout(" 2+3=5\n#### 5", ids=ids) for ids in ((9, 1), (2, 9), (2, 3, 4), (2, 8))]
    for order in permutations(same):
        ((_, kept),) = ei.keep_distinct(order, STRICT, 1.0).items()
        assert tuple(kept.completion.token_ids) == (2, 8)  # of the shortest the lowest ids


@pytest.mark.parametrize(
    ("scores", "threshold", "kept"),
    [
        ([0.0, 0.0, 0.0], 1.0, 0),  # a round of failures has nothing to give
        ([0.0, 1.0, 0.0], 1.0, 1),
        ([0.4, 0.5, 0.6], 0.5, 2),
    ],
)
def test_only_what_reaches_the_threshold_is_kept(
    scores: list[float], threshold: float, kept: int
) -> None:
    rollouts = [rollout(f" 1+{i}={i + 1}\n#### 5", score) for i, score in enumerate(scores)]
    assert len(ei.keep_distinct(rollouts, STRICT, threshold)) == kept


def test_of_a_problem_so_many_of_the_best_are_kept() -> None:
    found = [
        rollout(" 1+1=2\n#### 5", 1.0, ids=(7, 7)),
        rollout(" 1+2=3\n#### 5", 1.5, ids=(7, 7, 7)),
        rollout(" 1+3=4\n#### 5", 1.0, ids=(7,)),
        rollout(" 1+4=5\n#### 5", 1.25, ids=(8,)),
        rollout(" 1+5=6\n#### 5", 0.5, ids=(6,)),  # below the threshold
        rollout(" 1+1=2\n#### 5", 1.0, ids=(9,) * 4, problem="t1"),
    ]
    best = {  # by score; of the two with 1.0 the shorter comes first
        1: {(7, 7, 7), (9,) * 4},
        2: {(7, 7, 7), (8,), (9,) * 4},
        3: {(7, 7, 7), (8,), (7,), (9,) * 4},
        4: {(7, 7, 7), (8,), (7,), (7, 7), (9,) * 4},
        5: {(7, 7, 7), (8,), (7,), (7, 7), (9,) * 4},
    }
    for top, expected in best.items():
        for order in permutations(found):
            kept = ei.keep_distinct(order, STRICT, 1.0, top)
            assert {tuple(r.completion.token_ids) for r in kept.values()} == expected


def test_of_equal_scores_and_lengths_the_lowest_ids_are_best() -> None:
    found = [rollout(f" 1+{i}={i + 1}\n#### 5", ids=(9, 9 - i)) for i in range(3)]
    for order in permutations(found):
        ((_, kept),) = ei.keep_distinct(order, STRICT, 1.0, top=1).items()
        assert tuple(kept.completion.token_ids) == (9, 7)


def solutions(**how_many: int) -> dict[ei.Key, Example]:
    return {
        (problem, (f"1+{i}={i + 1}",)): Example((1,), (i,))
        for problem, count in how_many.items()
        for i in range(count)
    }


def test_cap_takes_so_many_of_each_problem_in_the_order_they_came() -> None:
    found = solutions(t0=5, t1=1, t2=2)
    assert ei.cap_per_problem(found, None, seed=0) == found
    draws = {tuple(ei.cap_per_problem(found, 2, seed).values()) for seed in range(30)}
    for drawn in draws:
        assert len(drawn) == 5  # 2 + 1 + 2
        ids = [example.completion_ids[0] for example in drawn]
        assert ids[0] < ids[1]
        assert ids[2:] == [0, 0, 1]
    assert len(draws) == 10  # the pairs of five, each drawn by one of 30 seeds at least
    assert ei.cap_per_problem(found, 2, seed=3) == ei.cap_per_problem(found, 2, seed=3)


def test_solutions_share_the_weight_of_their_problem() -> None:
    found = solutions(t0=3, t1=1)
    assert ei.weighted(found, "sample") == found
    even = ei.weighted(found, "problem")
    assert list(even) == list(found)
    # 4 solutions of 2 problems: 2 for each problem
    assert [e.weight for e in even.values()] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


# --- whole runs, with completions from a script and a tiny model that learns from them


WRONG = [" 9+9=18\n#### 18"]
HALF_RIGHT = " 1+4=5\n#### 5"  # to v0, not to v1
FIRST = {"t0": [" 2+3=5\n#### 5"], "t1": [" 4+4=8\n#### 8"]}
# A calculation that is known by then, in other words, and one that isn't.
SECOND = {"t0": [" Ana: 2+3=5\n#### 5", " 3+2=5\n#### 5"]}
THIRD = {"t2": [" 1+6=7\n#### 7"]}


def script(
    *rounds: Mapping[str, Sequence[str]], validation: Sequence[str] = (WRONG[0],)
) -> Callable[[str, int], Sequence[str]]:
    """Texts of each round for training problems; those not named get a wrong one.

    validation: one text for each validation, the first of round 0. Last entries serve on.
    """

    def texts(problem_id: str, visit: int) -> Sequence[str]:
        if problem_id.startswith("v"):
            return [validation[min(visit, len(validation) - 1)]]
        return rounds[min(visit, len(rounds) - 1)].get(problem_id, WRONG)

    return texts


class Killed(BaseException):
    pass


@dataclass
class Lab:
    """Runs ei.run, and keeps what the learner was given.

    learnt: the examples of each fit. started, ended: the weights' hashes before and after it.
    kill_at_step: counted over all rounds.
    """

    folder: Path
    configure: Callable[..., TrainConfig]
    tokenizer: PreTrainedTokenizerBase
    base: str
    sampler: ScriptedSampler | None = None
    learnt: list[list[Example]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    kill_at_step: int | None = None

    def fit(
        self, optimization: Optimization, examples: Sequence[Example], *args: Any, **options: Any
    ) -> None:
        advance, model = options.pop("on_step"), optimization.model.policy
        step = options["start"].step

        def on_step(n: int) -> None:
            nonlocal step
            advance(n)
            step += n
            if step == self.kill_at_step:
                raise Killed

        self.learnt.append(list(examples))
        self.started.append(weights_hash(model))
        self.real_fit(optimization, examples, *args, on_step=on_step, **options)
        self.ended.append(weights_hash(model))

    real_fit = staticmethod(job_module.fit)

    def run(
        self,
        sampler: ScriptedSampler,
        *overrides: str,
        init: str | None = None,
        path: Path | None = None,
    ) -> SavedPolicy:
        small = ["algorithm.num_samples_per_prompt=[2]", "algorithm.batch_size=1"]
        small += ["algorithm.epochs=1", "algorithm.rounds=2"]
        config = self.configure(*small, *overrides)
        self.sampler = sampler
        run = RunFolder(path or self.folder)
        with MetricsLog(run.metrics) as log:
            job = Job(
                config=config,
                run=run,
                device=CPU,
                base=self.base,
                init=init or self.base,
                few_shot=config.init.name == "pretrained",
                grader=STRICT,
                tokenizer=self.tokenizer,
                train=TRAIN,
                validation=VALIDATION,
                exemplars=EXEMPLARS,
                log=log,
                progress=Progress(),
            )
            return ei.run(job, job.config.algorithm)

    def rounds(self) -> list[dict[str, Any]]:
        """What was logged of each round, round 0 first."""
        return [m for m in read_metrics(self.folder / "metrics.jsonl") if "ei/round" in m]

    def example(self, problem: Problem, text: str) -> Example:
        """The question alone, and the text with EOS."""
        prompt, completion = (
            tuple(self.tokenizer(t, add_special_tokens=False)["input_ids"])
            for t in (f"Q: {problem.question}\nA:", text)
        )
        return Example(prompt, (*completion, 0))


@pytest.fixture
def make_lab(
    monkeypatch: pytest.MonkeyPatch,
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> Callable[[str], Lab]:
    def make(name: str) -> Lab:
        lab = Lab(tmp_path / name, configure, tokenizer, random_policy)
        monkeypatch.setattr(job_module, "fit", lab.fit)
        monkeypatch.setitem(ENGINES, "transformers", opening(lambda *_, **__: lab.sampler))
        return lab

    return make


@pytest.fixture
def lab(make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab("run")


PRETRAINED = "init=pretrained"


def hash_of(path: str | Path) -> str:
    return weights_hash(load_policy(str(path), "float32", CPU).model)


def test_a_round_without_a_right_answer_updates_nothing_and_the_run_goes_on(
    lab: Lab, scripted: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = lab.run(scripted(script({}, FIRST, {})), PRETRAINED, "algorithm.rounds=3")
    assert len(lab.learnt) == 1
    assert [m["ei/new_solutions"] for m in lab.rounds()[1:]] == [0, 2, 0]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "round 1 found no new solution" in warnings[0]
    # Round 3 found nothing in its turn: the policy is round 2's.
    assert result == SavedPolicy(str(lab.folder / "policy"), few_shot=False)
    assert hash_of(result.path) == lab.ended[0]


def test_a_run_without_any_right_answer_returns_its_starting_policy(
    lab: Lab, scripted: Callable
) -> None:
    result = lab.run(scripted(script({})), PRETRAINED)
    assert result == SavedPolicy(lab.base, few_shot=True)
    assert lab.learnt == []
    assert len(lab.rounds()) == 3
    assert not (lab.folder / "policy").exists()


def test_every_round_starts_from_the_base(lab: Lab, scripted: Callable) -> None:
    lab.run(scripted(script(FIRST, SECOND)), PRETRAINED)
    base = hash_of(lab.base)
    assert lab.started == [base, base]
    assert [r.base_hash for r in ei.read_rounds(lab.folder)] == [None, base, base]
    assert base not in lab.ended


def test_without_restart_a_round_starts_from_the_last_policy(lab: Lab, scripted: Callable) -> None:
    lab.run(scripted(script(FIRST, SECOND)), PRETRAINED, "algorithm.restart=false")
    assert lab.started == [hash_of(lab.base), lab.ended[0]]


def test_exemplars_are_asked_with_at_first_and_never_learnt_from(
    lab: Lab, scripted: Callable
) -> None:
    sampler = scripted(script({"t0": [" 2+3=5\n#### 5\n\nQ: Ana has 1 apples"]}, FIRST))
    lab.run(sampler, PRETRAINED)
    asked = [lab.tokenizer.decode(call[0][0].token_ids) for call in sampler.calls]
    # Validation and exploration of round 0's policy, and of round 1's; validation of round 2's.
    assert [text.count("Q:") for text in asked] == [3, 3, 1, 1, 1]
    assert asked[1].startswith("Q: Ana has 9 apples. Then Ben gives Ana 9 apples.\nA: 9+9=18")
    # The delimiter ended the completion; EOS takes its place.
    assert lab.learnt[0] == [lab.example(TRAIN[0], " 2+3=5\n#### 5")]
    # It keeps the EOS that was sampled, and gets no second one.
    assert lab.learnt[1] == [*lab.learnt[0], lab.example(TRAIN[1], " 4+4=8\n#### 8")]


def test_the_ids_learnt_from_are_the_ids_sampled(
    lab: Lab, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = ScriptedSampler._completion
    odd = (13, 13, 2, 268 - 1, 0)  # no text encodes to these

    def with_odd_ids(self: ScriptedSampler, *args: Any) -> Completion:
        whole = complete(self, *args)
        return Completion(whole.problem_id, whole.sample_index, odd, (0.0,) * 5, "eos", whole.text)

    monkeypatch.setattr(ScriptedSampler, "_completion", with_odd_ids)
    lab.run(scripted(script(FIRST)), PRETRAINED, "algorithm.rounds=1")
    assert [e.completion_ids for e in lab.learnt[0]] == [odd, odd]


def test_solutions_accumulate_each_once(lab: Lab, scripted: Callable) -> None:
    lab.run(scripted(script(FIRST, SECOND, FIRST)), PRETRAINED, "algorithm.rounds=3")
    first = [lab.example(TRAIN[0], FIRST["t0"][0]), lab.example(TRAIN[1], FIRST["t1"][0])]
    # Of round 2's right answers one was known; round 3 found none that wasn't.
    assert lab.learnt == [first, [*first, lab.example(TRAIN[0], SECOND["t0"][1])]]


def test_without_accumulation_a_round_learns_from_its_own_solutions(
    lab: Lab, scripted: Callable
) -> None:
    options = ("init=sft", "dataset.num_references=2", "algorithm.accumulate=false")
    expected = [
        [lab.example(TRAIN[0], FIRST["t0"][0]), lab.example(TRAIN[1], FIRST["t1"][0])],
        [lab.example(TRAIN[0], text) for text in SECOND["t0"]],
    ]
    lab.kill_at_step = 3  # within the second round
    with pytest.raises(Killed):
        lab.run(scripted(script(FIRST, SECOND)), *options)
    assert lab.learnt == expected
    lab.kill_at_step = None
    lab.run(scripted(script(FIRST, SECOND)), *options)
    assert lab.learnt == [*expected, expected[1]]  # the round again, from its rollouts on disk


@pytest.mark.parametrize(("init", "references"), [("sft", 2), ("pretrained", 0)])
def test_references_are_learnt_from_where_the_start_was_fine_tuned_on_them(
    init: str, references: int, lab: Lab, scripted: Callable
) -> None:
    # Of t0 it finds the reference's own calculation, in other words.
    sampler = scripted(script({"t0": [" Ana: 2+3=5\n#### 5"], "t2": [" 6+1=7\n#### 7"]}))
    overrides = (f"init={init}", "dataset.num_references=2", "algorithm.rounds=1")
    lab.run(sampler, *overrides)
    expected = [lab.example(p, f" {p.solution}") for p in TRAIN[:references]]
    if not references:
        expected.append(lab.example(TRAIN[0], " Ana: 2+3=5\n#### 5"))
    assert lab.learnt == [[*expected, lab.example(TRAIN[2], " 6+1=7\n#### 7")]]


def test_each_problem_weighs_the_same(lab: Lab, scripted: Callable) -> None:
    # Round 2 finds t0's second solution, in all four of its samples, and none of t1's.
    options = ("algorithm.weighting=problem", "algorithm.num_samples_per_prompt=[4]")
    lab.run(scripted(script(FIRST, SECOND)), PRETRAINED, *options)
    assert [[e.weight for e in examples] for examples in lab.learnt] == [[1, 1], [0.75, 1.5, 0.75]]
    first, second = lab.rounds()[1:]
    assert [first[f"ei/{name}"] for name in ("hard_weight", "effective_problems")] == [0, 2]
    assert second["ei/hard_weight"] == 0.5
    assert second["ei/effective_problems"] == 2


def test_what_is_logged_of_a_round(lab: Lab, scripted: Callable) -> None:
    sampler = scripted(script(FIRST, SECOND, validation=[WRONG[0], HALF_RIGHT]))
    options = ("algorithm.num_samples_per_prompt=[2,4]", "algorithm.max_per_problem=1")
    lab.run(sampler, PRETRAINED, *options)
    start, first, second = lab.rounds()
    assert start == {"step": 0, "ei/round": 0, "ei/rollouts": 0, "eval/validation_maj@1": 0.0}
    assert first["step"] == 2
    assert first["ei/rollouts"] == 6  # 3 problems x 2
    assert first["rollout/score"] == pytest.approx(4 / 6)
    assert first["eval/validation_maj@1"] == 0.5
    counts = ("new_solutions", "solutions", "solutions_capped", "most_per_problem")
    assert [first[f"ei/{name}"] for name in counts] == [2, 2, 0, 1]
    assert second["step"] == 4  # two solutions again, for t0 may give but one of its two
    assert second["ei/rollouts"] == 18  # and 3 x 4
    assert second["rollout/score"] == pytest.approx(4 / 12)
    assert [second[f"ei/{name}"] for name in counts] == [1, 3, 1, 2]
    assert second["ei/problems_solved"] == pytest.approx(2 / 3)
    # Without the cap t0 would weigh 2 and t1, of which this round's samples are wrong, 1.
    assert second["ei/hard_weight"] == 0.5
    losses = [m["step"] for m in read_metrics(lab.folder / "metrics.jsonl") if "ei/loss" in m]
    assert losses == [1, 2, 3, 4]


def test_the_last_number_of_samples_serves_the_rounds_after_it(
    lab: Lab, scripted: Callable
) -> None:
    sampler = scripted(script({}))
    options = ("algorithm.rounds=3", "algorithm.num_samples_per_prompt=[4,2]")
    lab.run(sampler, PRETRAINED, *options)
    explorations = [(p.num_samples_per_prompt, s) for _, p, s in sampler.calls if p.temperature]
    assert [k for k, _ in explorations] == [4, 2, 2]
    assert len({seed for _, seed in explorations}) == 3
    assert {p.temperature for _, p, _ in sampler.calls} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("validation", "best"),
    [
        ([WRONG[0], WRONG[0], HALF_RIGHT], 2),
        ([WRONG[0], HALF_RIGHT, WRONG[0]], 1),
        ([WRONG[0], HALF_RIGHT, HALF_RIGHT], 1),  # the earlier of equals
        ([HALF_RIGHT, WRONG[0], WRONG[0]], 1),  # the start only where nothing was learnt
    ],
)
def test_the_best_round_is_returned(
    validation: list[str], best: int, lab: Lab, scripted: Callable
) -> None:
    result = lab.run(scripted(script(FIRST, SECOND, validation=validation)), PRETRAINED)
    assert hash_of(result.path) == lab.ended[best - 1]
    assert not result.few_shot


@pytest.mark.parametrize(("patience", "rounds"), [("1", 2), ("2", 3), ("null", 4)])
def test_patience_ends_a_run_that_no_longer_improves(
    patience: str, rounds: int, lab: Lab, scripted: Callable
) -> None:
    sampler = scripted(script(FIRST, validation=[WRONG[0], HALF_RIGHT]))
    lab.run(sampler, PRETRAINED, "algorithm.rounds=4", f"algorithm.patience={patience}")
    assert [m["ei/round"] for m in lab.rounds()] == list(range(rounds + 1))


def dies_at(problem_id: str, visit: int, texts: Callable) -> Callable[[str, int], Sequence[str]]:
    def dying(asked_id: str, asked_visit: int) -> Sequence[str]:
        if (asked_id, asked_visit) == (problem_id, visit):
            raise Killed
        return texts(asked_id, asked_visit)

    return dying


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed_in",
    ["validation 0", "sampling 1", "learning 1", "validation 1", "learning 2", "sampling 3"],
)
def test_a_killed_run_goes_on_to_the_same_end(
    killed_in: str, make_lab: Callable[[str], Lab], scripted: Callable
) -> None:
    texts = script(FIRST, SECOND, THIRD, validation=[WRONG[0], WRONG[0], WRONG[0], HALF_RIGHT])
    # 2, 3 and 4 steps, with a checkpoint after each
    options = (PRETRAINED, "algorithm.rounds=3", "runtime.checkpoint_seconds=0")
    straight = make_lab("straight")
    result = straight.run(scripted(texts), *options)

    lab = make_lab("killed")
    phase, number = killed_in.split()
    sampler = scripted(texts)
    if phase == "learning":
        lab.kill_at_step = {"1": 2, "2": 4}[number]
    else:
        who = ("v1", int(number)) if phase == "validation" else ("t1", int(number) - 1)
        sampler.script = dies_at(*who, texts)
    with pytest.raises(Killed):
        lab.run(sampler, *options)

    # What a shard was killed in is asked again: as new to the script as the first time.
    lab.kill_at_step, sampler.script = None, texts
    if phase != "learning":
        first = who[0].replace("1", "0")
        sampler._visits[first] -= 1
    resumed = lab.run(sampler, *options)
    assert hash_of(resumed.path) == hash_of(result.path)
    logs = [reproducible(folder / "metrics.jsonl") for folder in (lab.folder, straight.folder)]
    assert logs[0] == logs[1]
    for name in ("rounds.json", "rollouts/round-3.parquet"):
        assert (lab.folder / name).read_bytes() == (straight.folder / name).read_bytes()
    assert straight.rounds()[-1]["step"] == 9


def test_a_run_goes_on_when_its_folder_is_named_in_another_way(
    lab: Lab, scripted: Callable
) -> None:
    texts = script(FIRST, SECOND, validation=[WRONG[0], HALF_RIGHT, WRONG[0]])
    sampler = scripted(dies_at("t0", 1, texts))
    with pytest.raises(Killed):
        lab.run(sampler, PRETRAINED)
    sampler.script = texts
    result = lab.run(sampler, PRETRAINED, path=Path(os.path.relpath(lab.folder)))
    assert hash_of(result.path) == lab.ended[0]


def test_a_finished_run_computes_nothing(lab: Lab, scripted: Callable) -> None:
    texts = script(FIRST, SECOND)
    result = lab.run(scripted(texts), PRETRAINED)
    metrics, fits = (lab.folder / "metrics.jsonl").read_bytes(), len(lab.learnt)
    sampler = scripted(texts)
    assert lab.run(sampler, PRETRAINED) == result
    assert sampler.calls == []
    assert len(lab.learnt) == fits
    assert (lab.folder / "metrics.jsonl").read_bytes() == metrics


def test_the_start_is_sampled_from_and_the_base_is_learnt_on(
    lab: Lab,
    scripted: Callable,
    make_model: Callable[..., LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    start = tmp_path / "start"
    save_policy(Policy(make_model(seed=1), lab.tokenizer), start)
    sampled_from: list[str] = []

    def open_engine(folder: str, *_: Any, **__: Any) -> ScriptedSampler | None:
        sampled_from.append(hash_of(folder))
        return lab.sampler

    monkeypatch.setitem(ENGINES, "transformers", opening(open_engine))
    options = ("init=sft", "dataset.num_references=1")
    lab.run(scripted(script(FIRST, SECOND)), *options, init=str(start))
    base, first = hash_of(lab.base), hash_of(start)
    assert base != first
    assert lab.started == [base, base]
    # validation and exploration of each policy, then the last one's validation
    assert sampled_from == [first, first, lab.ended[0], lab.ended[0], lab.ended[1]]


# --- rewards with more to say than right and wrong

# To t0, 2 + 3, one intermediate result: 1 for the answer and 0.5 for the result, by their weights.
GRADED = {"t0": [" 2+3=5\n#### 5", " #### 5", " 2+3=5\n5+1=6\n#### 6", " 2+9=11\n#### 11"]}


@pytest.mark.parametrize(
    ("threshold", "kept", "correct"),
    [
        ("1.25", [0], 1),
        ("1.0", [0, 1], 2),  # right without the result
        ("0.5", [0, 1, 2], 2),  # and the result without the answer
    ],
)
def test_the_dense_reward_s_threshold(
    threshold: str, kept: list[int], correct: int, lab: Lab, scripted: Callable
) -> None:
    options = (PRETRAINED, "reward=dense", f"reward.threshold={threshold}", "algorithm.rounds=1")
    lab.run(scripted(script(GRADED)), *options, "algorithm.num_samples_per_prompt=[4]")
    assert lab.learnt == [[lab.example(TRAIN[0], GRADED["t0"][i]) for i in kept]]
    assert lab.rounds()[1]["ei/new_correct"] == correct
    # 1.5 + 1 + 0.5 + 0 of t0; to t1 and t2 nothing is right
    assert lab.rounds()[1]["rollout/score"] == pytest.approx(3.0 / 12)


class Verdicts:
    """A reward model with a probability for each text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, of: Mapping[str, float]) -> None:
        self.tokenizer, self.of = tokenizer, of

    def token_probabilities(self, completions: Sequence[Completion], _: Any) -> list[np.ndarray]:
        return [np.full(len(c.token_ids), self.of.get(c.text, 0.0)) for c in completions]


JUDGED = {
    " 2+3=5\n#### 5": 0.5,  # 0.75 with the outcome's 0.5
    " 3+2=5\n#### 5": 0.4,  # 0.7
    " 1+4=5\n#### 5": 0.9,  # 0.95
    " 2+9=11\n#### 11": 1.0,  # 0.5, wrong
}


@pytest.mark.parametrize(
    ("options", "kept", "correct"),
    [
        (["reward.threshold=0.75"], [0, 2], 2),
        (["reward.threshold=0.7"], [0, 1, 2], 3),
        (["reward.threshold=0.5"], [0, 1, 2, 3], 3),
        (["reward.threshold=0.5", "algorithm.top_per_problem=1"], [2], 1),
        (["reward.threshold=0.5", "algorithm.top_per_problem=3"], [0, 1, 2], 3),
    ],
)
def test_a_learned_reward_s_threshold_and_its_best(
    options: list[str],
    kept: list[int],
    correct: int,
    lab: Lab,
    scripted: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = list(JUDGED)
    model = Verdicts(lab.tokenizer, JUDGED)
    monkeypatch.setattr(Job, "_load_reward_model", lambda _: model)
    more = ("algorithm.num_samples_per_prompt=[4]", "algorithm.rounds=1")
    lab.run(scripted(script({"t0": texts})), PRETRAINED, "reward=orm", *more, *options)
    assert lab.learnt == [[lab.example(TRAIN[0], texts[i]) for i in kept]]
    assert lab.rounds()[1]["ei/new_solutions"] == len(kept)
    assert lab.rounds()[1]["ei/new_correct"] == correct


def test_a_resumed_run_chooses_the_same_best(lab: Lab, scripted: Callable) -> None:
    """What was kept of earlier rounds is chosen again from their rollouts, by the same rule."""
    first = {"t0": [" 2+3=5\n#### 5", " #### 5"]}
    texts = script(first, {})
    options = (PRETRAINED, "reward=dense", "reward.threshold=0.5", "algorithm.top_per_problem=1")
    sampler = scripted(dies_at("t0", 1, texts))
    with pytest.raises(Killed):
        lab.run(sampler, *options)
    sampler.script = texts
    lab.run(sampler, *options)
    assert [m["ei/solutions"] for m in lab.rounds()[1:]] == [1, 1]
    assert lab.learnt == [[lab.example(TRAIN[0], first["t0"][0])]]
