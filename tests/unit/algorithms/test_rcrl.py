"""Return-Conditioned RL: which steps are learnt under which labels, and what a run leaves behind.

Of the problem t0, 2+3=5 and then 5*4=20, what is right has three steps and what is wrong three,
which the dense reward finds right, wrong and wrong.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl import job as job_module
from reasonrl.algorithms import rcrl
from reasonrl.algorithms.rcrl import Steps, add_labels, choose, label_statistics, make_examples
from reasonrl.config.algorithm.rcrl import RCRLConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.job import Job
from reasonrl.learning.checkpoint import weights_hash
from reasonrl.learning.optimization import Optimization
from reasonrl.learning.supervised import Example, collate
from reasonrl.policy.policy import Policy, load_policy, save_policy
from reasonrl.rewards.sparse import is_correct
from reasonrl.runs.metrics_log import read_metrics, reproducible
from reasonrl.sampling import ENGINES, SamplingParams
from reasonrl.sampling.rollouts import write_rollouts
from reasonrl.types import Completion, Problem, Prompt, Rollout, SavedPolicy
from reasonrl.util.errors import UserError
from tests.helpers.grading import STRICT
from tests.helpers.jobs import (
    TRAIN,
    VALIDATION,
    job_of,
    problem,
    refuse,
    right,
    sampled,
    write_samples,
    wrong,
)
from tests.helpers.scripted import ScriptedSampler, opening
from tests.helpers.tokenizers import byte_level

CPU = torch.device("cpu")
T0, T1, _ = TRAIN


@pytest.fixture
def config_of(configure: Callable[..., TrainConfig]) -> Callable[..., RCRLConfig]:
    def make(*overrides: str) -> RCRLConfig:
        algorithm = configure("algorithm=rcrl", *overrides).algorithm
        assert isinstance(algorithm, RCRLConfig)
        return algorithm

    return make


# --- which steps are learnt, under which labels

AS_SAMPLED = "algorithm.solution_ratio=null"
# Steps of two right solutions and of three wrong ones, the last of which has none.
RETURNS = [[0.9, 0.2, 1.0], [0.5, 0.1], [0.4, 0.0], [0.6, 0.3, 0.0], []]
CORRECT = [True, True, False, False, False]
SOLUTION = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
LABELS = [1, 0, 1, 1, 0, 0, 0, 1, 0, 0]


def test_steps_are_labelled_by_their_returns(config_of: Callable) -> None:
    steps = choose(RETURNS, CORRECT, config_of(AS_SAMPLED), seed=0)
    assert steps.solution.tolist() == SOLUTION
    assert steps.number.tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 2]
    assert steps.value.tolist() == [0.9, 0.2, 1.0, 0.5, 0.1, 0.4, 0.0, 0.6, 0.3, 0.0]
    assert steps.label.tolist() == LABELS
    assert steps.learnt.tolist() == [True] * 10


def test_whole_solutions_are_kept(config_of: Callable) -> None:
    config = config_of("algorithm.solution_ratio=1")
    drawn = set()
    for seed in range(30):
        steps = choose(RETURNS, CORRECT, config, seed)
        assert steps.label.tolist() == LABELS
        kept = {s for s, learnt in zip(SOLUTION, steps.learnt, strict=True) if learnt}
        assert steps.learnt.tolist() == [s in kept for s in SOLUTION]
        again = choose(RETURNS, CORRECT, config, seed)
        assert again.learnt.tolist() == steps.learnt.tolist()
        drawn.add(tuple(sorted(kept)))
    # Both right ones, and two of the three wrong ones, of which number 4 has no step to show.
    assert drawn == {(0, 1, 2, 3), (0, 1, 2), (0, 1, 3)}


def test_steps_are_chosen_among_those_of_kept_solutions(config_of: Callable) -> None:
    config = config_of("algorithm.solution_ratio=inf", "algorithm.step_ratio=1")
    drawn = set()
    for seed in range(30):
        steps = choose(RETURNS, CORRECT, config, seed)
        assert steps.label.tolist() == LABELS
        assert not steps.learnt[5:].any()  # of the wrong solutions
        drawn.add(tuple(np.flatnonzero(steps.learnt).tolist()))
    # Bad steps of the right ones are 1 and 4; of the good ones, 0, 2 and 3, two stay.
    assert drawn == {(0, 1, 2, 4), (0, 1, 3, 4), (1, 2, 3, 4)}


def test_shuffled_labels_stay_within_what_is_kept(config_of: Callable) -> None:
    overrides = ("algorithm.solution_ratio=inf", "algorithm.step_ratio=1")
    plain = config_of(*overrides)
    config = config_of(*overrides, "algorithm.shuffle_labels=true")
    drawn, good_learnt = set(), set()
    for seed in range(60):
        steps, straight = (choose(RETURNS, CORRECT, c, seed) for c in (config, plain))
        assert Counter(steps.label[:5].tolist()) == {1: 3, 0: 2}
        assert steps.label[5:].tolist() == LABELS[5:]
        assert steps.value.tolist() == straight.value.tolist()
        assert steps.learnt.tolist() == straight.learnt.tolist()
        drawn.add(tuple(steps.label[:5].tolist()))
        good_learnt.add(int(steps.label[steps.learnt].sum()))
    assert len(drawn) == 10  # 5! / (3! 2!)
    assert good_learnt == {2, 3}  # the one good step that isn't learnt takes part too


def test_nothing_to_choose_from(config_of: Callable) -> None:
    for returns in ((), ((), ())):
        steps = choose(returns, [False] * len(returns), config_of(), seed=0)
        assert [len(array) for array in dataclasses.astuple(steps)] == [0] * 5


# --- what an example is


def steps_of(*solutions: tuple[Sequence[int], Sequence[bool]]) -> Steps:
    """Of labels and uses of each solution's steps."""
    return Steps(
        solution=np.repeat(np.arange(len(solutions)), [len(labels) for labels, _ in solutions]),
        number=np.array([i for labels, _ in solutions for i in range(len(labels))], dtype=int),
        value=np.array([float(label) for labels, _ in solutions for label in labels]),
        label=np.array([label for labels, _ in solutions for label in labels], dtype=int),
        learnt=np.array([use for _, uses in solutions for use in uses], dtype=bool),
    )


@pytest.fixture
def examples_of(
    configure: Callable[..., TrainConfig], random_policy: str, tmp_path: Path
) -> Callable[..., list[Example]]:
    def make(
        rollouts: Sequence[Rollout],
        steps: Steps,
        ids: Sequence[tuple[int, ...]] = ((268,), (269,)),
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> list[Example]:
        with job_of(configure("algorithm=rcrl"), random_policy, tmp_path / "run", **options) as job:
            job = dataclasses.replace(job, tokenizer=tokenizer or job.tokenizer)
            return make_examples(job, rollouts, steps, ids)

    return make


def asked(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> tuple[int, ...]:
    return tuple(tokenizer(f"Q: {problem.question}\nA:")["input_ids"])


# " 2+3=5\n#### 20" in ids: a space is 13, a newline 14, "####" 33, EOS 0, the digit d is 3 + d.
FIRST = (13, 5, 20, 6, 24, 8, 14)
SECOND = (33, 13, 5, 3)
TWO_STEPS = " 2+3=5\n#### 20"
GOOD_BAD = steps_of(([1, 0], [True, True]))


def masked(*parts: tuple[bool, int]) -> tuple[bool, ...]:
    return tuple(value for value, count in parts for _ in range(count))


@pytest.mark.parametrize(
    ("reason", "eos"),
    [
        ("eos", (0,)),  # its own
        ("stop", (0,)),  # instead of the delimiter
        ("length", ()),  # it never ended
    ],
)
@pytest.mark.parametrize("few_shot", [False, True])
def test_question_label_step_label_step(
    reason: Any,
    eos: tuple[int, ...],
    few_shot: bool,
    examples_of: Callable,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rollouts = sampled(tokenizer, T0, [TWO_STEPS], reason)
    assert examples_of(rollouts, GOOD_BAD, few_shot=few_shot) == [
        Example(
            prompt_ids=asked(tokenizer, T0),  # of the question alone
            completion_ids=(269, *FIRST, 268, *SECOND, *eos),
            loss_mask=masked((False, 1), (True, 7), (False, 1), (True, 4 + len(eos))),
        )
    ]


@pytest.mark.parametrize(
    ("uses", "mask"),
    [
        ([True, False], masked((False, 1), (True, 7), (False, 6))),
        ([False, True], masked((False, 9), (True, 5))),
    ],
)
def test_a_step_that_is_not_learnt_is_read(
    uses: list[bool],
    mask: tuple[bool, ...],
    examples_of: Callable,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rollouts = sampled(tokenizer, T0, [TWO_STEPS])
    (example,) = examples_of(rollouts, steps_of(([1, 0], uses)))
    assert example.completion_ids == (269, *FIRST, 268, *SECOND, 0)
    assert example.loss_mask == mask


def test_a_solution_without_a_step_to_learn_is_left_out(
    examples_of: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    rollouts = sampled(tokenizer, T0, [TWO_STEPS, "Q: 1", TWO_STEPS])
    rollouts += sampled(tokenizer, T1, ["#### 20", TWO_STEPS])
    steps = steps_of(
        ([1, 0], [False, False]),
        ([], []),  # it has none
        ([0, 1], [True, True]),
        ([1], [True]),
        ([1, 1], [False, False]),
    )
    assert examples_of(rollouts, steps) == [
        Example(
            asked(tokenizer, T0),
            (268, *FIRST, 269, *SECOND, 0),
            masked((False, 1), (True, 7), (False, 1), (True, 5)),
        ),
        Example(asked(tokenizer, T1), (269, *SECOND, 0), masked((False, 1), (True, 5))),
    ]
    assert examples_of(rollouts[:1], steps_of(([1, 0], [False, False]))) == []


def test_labels_of_several_ids(examples_of: Callable, tokenizer: PreTrainedTokenizerBase) -> None:
    rollouts = sampled(tokenizer, T0, [TWO_STEPS])
    (example,) = examples_of(rollouts, GOOD_BAD, [(31, 3, 32), (31, 4)])
    assert example.completion_ids == (31, 4, *FIRST, 31, 3, 32, *SECOND, 0)
    assert example.loss_mask == masked((False, 2), (True, 7), (False, 3), (True, 5))


def test_a_label_comes_where_it_will_come_in_acting(
    examples_of: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    """After the newline of a line that isn't blank, whatever comes next."""
    rollouts = sampled(tokenizer, T0, ["\n 2+3=5\n\n#### 20\n"])
    (example,) = examples_of(rollouts, GOOD_BAD)
    # The EOS after the last newline is the second step's, and so is its label.
    assert example.completion_ids == (269, 14, *FIRST, 268, 14, *SECOND, 14, 268, 0)
    assert example.loss_mask == masked((False, 1), (True, 8), (False, 1), (True, 6), (False, 1),
                                       (True, 1))  # fmt: skip


def test_the_ids_learnt_from_are_the_ids_sampled(examples_of: Callable) -> None:
    # A padding token among the digits: no text encodes to these ids.
    ids = (*FIRST[:4], 1, *FIRST[4:], *SECOND[:3], 1, SECOND[3], 0)
    completion = Completion("t0", 0, ids, (-0.5,) * 14, "eos", TWO_STEPS)
    rollout = Rollout(Prompt("t0", (5, 5)), completion, "20", True, (0.0,) * 14)
    (example,) = examples_of([rollout], GOOD_BAD)
    assert example.completion_ids == (269, *ids[:8], 268, *ids[8:])
    assert example.loss_mask == masked((False, 1), (True, 8), (False, 1), (True, 6))


# --- labels and text


MARKED = Problem("m", f"[GOOD] {T0.question} [BAD]", T0.answer, T0.solution)
MARKED_STEPS = [" [BAD] 2+3=5 [GOOD]\n", "[GOOD]\n", "#### 20"]


@pytest.mark.parametrize("own", [True, False])
def test_labels_are_only_where_they_are_put(own: bool, examples_of: Callable) -> None:
    """Under labels of their own and as text, which the tokenizer can write and so may the model."""
    tokenizer = byte_level()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    bad, good = ((900,), (901,)) if own else (ids("[BAD]"), ids("[GOOD]"))
    (example,) = examples_of(
        sampled(tokenizer, MARKED, ["".join(MARKED_STEPS)]),
        steps_of(([1, 0, 1], [True, True, True])),
        [bad, good],
        train=[MARKED],
        tokenizer=tokenizer,
    )
    first, second, third = map(ids, MARKED_STEPS)
    eos = tokenizer.eos_token_id
    assert example.prompt_ids == ids(f"Q: {MARKED.question}\nA:")
    assert example.completion_ids == (*good, *first, *bad, *second, *good, *third, eos)
    assert example.loss_mask == masked(
        (False, len(good)), (True, len(first)), (False, len(bad)), (True, len(second)),
        (False, len(good)), (True, len(third) + 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 18 [GOOD]", None),
        ("[GOOD] #### 18", None),
        ("#### [BAD] 18", None),
        ("####[GOOD]18", None),
        ("[GOOD]#### 18", None),
        ("#### 1[GOOD]8", None),
        ("[GOOD]18\n#### 18", "18"),
        ("[BAD]\n#### 18", "18"),
        ("#### 18\n[GOOD]", "18"),
        ("[GOOD] 2*9=18 [BAD]\n#### 18", "18"),
        ("#### 18\n[GOOD] #### 18", None),
        ("[GOOD] 18", None),
    ],
)
def test_a_label_in_a_text_is_a_word_like_others(text: str, answer: str | None) -> None:
    asked = Problem("p", "How many?", "18", "2*9=18\n#### 18")
    for word in ("[GOOD]", "[BAD]", "[WORD]"):
        written = text.replace("[GOOD]", word).replace("[BAD]", word)
        assert STRICT.answer(written) == answer
        completion = Completion("p", 0, (7,), (-0.5,), "eos", written)
        assert is_correct(completion, asked, STRICT) is (answer == "18")


def embeddings(policy: Policy) -> Tensor:
    weight = policy.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def test_labels_of_their_own_are_in_no_tokenizer(config_of: Callable, random_policy: str) -> None:
    policy = load_policy(random_policy, "float32", CPU)
    assert add_labels(policy, config_of(), seed=0) == {"[BAD]": (268,), "[GOOD]": (269,)}
    assert embeddings(policy).shape == (270, 16)
    assert policy.tokenizer("[GOOD]", add_special_tokens=False)["input_ids"] == [31, 2, 32]


@pytest.mark.parametrize("tied", [True, False])
def test_what_labels_start_as_is_decided_by_the_seed(
    tied: bool,
    config_of: Callable,
    make_model: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """And by nothing that was drawn before: a killed run must go on with the same ones."""
    hashes = []
    for seed, drawn_before in ((0, 1), (0, 2), (1, 1)):
        policy = Policy(make_model(tie_word_embeddings=tied), tokenizer)
        torch.manual_seed(drawn_before)
        add_labels(policy, config_of(), seed)
        hashes.append(weights_hash(policy.model))
        rows = embeddings(policy)[268:]
        assert not torch.allclose(rows[0], rows[1])
    assert hashes[0] == hashes[1] != hashes[2]


def test_labels_as_text_are_what_the_tokenizer_makes_of_them(
    config_of: Callable, random_policy: str
) -> None:
    policy = load_policy(random_policy, "float32", CPU)
    config = config_of("algorithm.label_tokens=text", "algorithm.labels=['[0]',' 1.5']")
    assert add_labels(policy, config, seed=0) == {"[0]": (31, 3, 32), " 1.5": (13, 4, 15, 8)}
    assert embeddings(policy).shape == (268, 16)


# --- whole runs


def test_what_is_counted() -> None:
    rollouts = [
        Rollout(Prompt("p", ()), Completion("p", i, (), (), "eos", ""), None, correct, ())
        for i, correct in enumerate([True, False, True, True])
    ]
    steps = steps_of(
        ([1, 0], [True, True]),
        ([0, 0, 0], [False, True, True]),
        ([1, 1], [False, False]),  # a solution left out
        ([1], [True]),
    )
    # Learnt: 2 of 5 good; in all 4 of 8. Of three solutions two are right.
    assert label_statistics(rollouts, steps, ["[BAD]", "[GOOD]"]) == {
        "solutions": 3,
        "solutions_right": pytest.approx(2 / 3),
        "steps": 5,
        "share_[BAD]": 0.6,
        "share_[GOOD]": 0.4,
        "sampled_share_[BAD]": 0.5,
        "sampled_share_[GOOD]": 0.5,
    }
    assert label_statistics(rollouts, steps, ["a", "b", "c"])["share_c"] == 0.0


class Killed(BaseException):
    pass


class Obedient(ScriptedSampler):
    """Answers as it is told to under each label: so many validation problems right."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, right_under: Mapping[int, int]) -> None:
        super().__init__(tokenizer, lambda *_: [])
        self.right_under = right_under

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, **options: Any
    ) -> list[Completion]:
        solved = [p.id for p in VALIDATION][: self.right_under[params.step_label[0]]]
        answers = {p.id: p.answer if p.id in solved else "1" for p in VALIDATION}
        self.script = lambda problem_id, _: [f"#### {answers[problem_id]}"]
        return super().sample(prompts, params, **options)


@dataclass
class Lab:
    """Runs rcrl.run on samples of every training problem, judged by the reference solution.

    learnt, started: the examples of each fit, and the weights it started from.
    kill_at_step: an optimizer step after which the process dies.
    """

    folder: Path
    configure: Callable[..., TrainConfig]
    tokenizer: PreTrainedTokenizerBase
    base: str
    sampler: Obedient
    learnt: list[list[Example]] = field(default_factory=list)
    started: list[dict[str, Tensor]] = field(default_factory=list)
    kill_at_step: int | None = None

    def fit(
        self, optimization: Optimization, examples: Sequence[Example], *args: Any, **options: Any
    ) -> None:
        advance, step = options.pop("on_step"), 0

        def on_step(n: int) -> None:
            nonlocal step
            advance(n)
            step += n
            if step == self.kill_at_step:
                raise Killed

        self.learnt.append(list(examples))
        self.started.append(
            {n: t.clone() for n, t in optimization.model.policy.state_dict().items()}
        )
        self.real_fit(optimization, examples, *args, on_step=on_step, **options)

    real_fit = staticmethod(job_module.fit)

    @contextmanager
    def job(self, *overrides: str, name: str = "run", init: str | None = None) -> Iterator[Job]:
        small = ["algorithm=rcrl", "reward=dense", "algorithm.batch_size=2", "algorithm.epochs=1"]
        small.append("algorithm.num_solutions_per_prompt=4")
        config = self.configure(*small, *overrides)
        rollouts = self.folder / "rollouts"
        with job_of(config, self.base, self.folder / name, rollouts, few_shot=True) as job:
            yield dataclasses.replace(job, init=init or self.base)

    def run(self, *overrides: str, **options: Any) -> SavedPolicy:
        with self.job(*overrides, **options) as job:
            return rcrl.run(job, job.config.algorithm)

    def labels(self) -> list[tuple[Any, ...]]:
        rows = pq.read_table(self.folder / "run" / "rollouts" / "labels.parquet").to_pylist()
        return [tuple(row.values()) for row in rows]

    def logged(self) -> dict[str, Any]:
        """What was logged at the end."""
        return read_metrics(self.folder / "run" / "metrics.jsonl")[-1]


@pytest.fixture
def lab(
    monkeypatch: pytest.MonkeyPatch,
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> Lab:
    """Samples: of each problem a right and a wrong one."""
    write_samples(tmp_path / "rollouts", tokenizer, right, wrong)
    sampler = Obedient(tokenizer, {268: 0, 269: 1})
    lab = Lab(tmp_path, configure, tokenizer, random_policy, sampler)
    monkeypatch.setattr(job_module, "fit", lab.fit)
    monkeypatch.setitem(ENGINES, "transformers", opening(lambda *_, **__: lab.sampler))
    return lab


def test_a_run(lab: Lab) -> None:
    result = lab.run()
    assert result == SavedPolicy(
        path=str(lab.folder / "run" / "policy"),
        few_shot=False,
        labels={"[BAD]": (268,), "[GOOD]": (269,)},
    )
    assert result.step_label == (269,)
    policy = load_policy(result.path, "float32", CPU)
    assert embeddings(policy).shape == (270, 16)
    assert policy.model.generation_config.suppress_tokens == [268, 269]

    # Six solutions of three steps: three good ones, or a good one and two bad ones.
    (examples,) = lab.learnt
    put = [tuple(i for i in e.completion_ids if i >= 268) for e in examples]
    assert put == [(269, 269, 269), (269, 268, 268)] * 3
    batch = collate(examples)
    assert batch.target_ids[batch.loss_mask].max() < 268
    assert int(batch.loss_mask.sum()) == sum(len(e.completion_ids) - 3 for e in examples)


def test_what_learnt_is_out_of_memory_when_its_policy_samples(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[weakref.ref[Any]] = []
    alive: list[Any] = []

    def fit(optimization: Optimization, *args: Any, **options: Any) -> None:
        learners.append(weakref.ref(optimization.model.policy))
        lab.real_fit(optimization, *args, **options)

    def open_sampler(*_: Any, **__: Any) -> Obedient:
        alive.extend(learner() for learner in learners)
        return lab.sampler

    monkeypatch.setattr(job_module, "fit", fit)
    monkeypatch.setitem(ENGINES, "transformers", opening(open_sampler))
    lab.run()
    assert alive == [None]


def test_each_label_is_validated_once(lab: Lab) -> None:
    lab.run()
    with lab.job() as job:
        question = job.prompts(VALIDATION, few_shot=False)
        stop = tuple(job.config.dataset.stop)
    asked = [(prompts, params) for prompts, params, _ in lab.sampler.calls]
    assert asked == [
        (question, SamplingParams(1, 0.0, 48, stop, (label,), "\n", (0,))) for label in (268, 269)
    ]


def test_what_is_logged(lab: Lab) -> None:
    lab.sampler.right_under = {268: 1, 269: 0, 270: 2}
    labels = ["algorithm.labels=[bad,fair,good]", "algorithm.thresholds=[0.5,1]"]
    lab.run(*labels)
    # Of 18 steps the 9 of right solutions and the first of wrong ones are worth 1, the rest 0.
    assert lab.logged() == {
        "step": 3,  # six solutions, two at a time
        "rcrl/solutions": 6,
        "rcrl/solutions_right": 0.5,
        "rcrl/steps": 18,
        "rcrl/share_bad": pytest.approx(1 / 3),
        "rcrl/share_fair": 0.0,
        "rcrl/share_good": pytest.approx(2 / 3),
        "rcrl/sampled_share_bad": pytest.approx(1 / 3),
        "rcrl/sampled_share_fair": 0.0,
        "rcrl/sampled_share_good": pytest.approx(2 / 3),
        "rcrl/maj@1_bad": 0.5,
        "rcrl/maj@1_fair": 0.0,
        "rcrl/maj@1_good": 1.0,
        "rcrl/conditioning_gap": 0.5,  # of the best and the worst label
        "eval/validation_maj@1": 1.0,  # under the best
    }
    losses = [m["step"] for m in read_metrics(lab.folder / "run" / "metrics.jsonl")[:-1]]
    assert losses == [1, 2, 3]


def test_what_is_written_of_each_step(lab: Lab) -> None:
    lab.run("algorithm.solution_ratio=inf")
    schema = pq.read_schema(lab.folder / "run" / "rollouts" / "labels.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("problem_id", "string"),
        ("sample_index", "int32"),
        ("correct", "bool"),
        ("number", "int32"),
        ("return", "double"),
        ("label", "string"),
        ("learnt", "bool"),
    ]
    assert lab.labels() == [
        row
        for name in ("t0", "t1", "t2")
        for row in [
            (name, 0, True, 0, 1.0, "[GOOD]", True),
            (name, 0, True, 1, 1.0, "[GOOD]", True),
            (name, 0, True, 2, 1.0, "[GOOD]", True),
            # Left out, but there to be looked at.
            (name, 1, False, 0, 1.0, "[GOOD]", False),
            (name, 1, False, 1, 0.0, "[BAD]", False),
            (name, 1, False, 2, 0.0, "[BAD]", False),
        ]
    ]
    assert len(lab.learnt[0]) == 3
    assert lab.logged()["rcrl/share_[BAD]"] == 0.0
    assert lab.logged()["rcrl/sampled_share_[BAD]"] == pytest.approx(1 / 3)


def test_so_many_solutions_of_each_question_and_no_blank_ones(lab: Lab) -> None:
    rollouts = [
        rollout
        for p in TRAIN
        for rollout in sampled(lab.tokenizer, p, [wrong(p), "\n", right(p), right(p)], "stop")
    ]
    write_rollouts(lab.folder / "rollouts" / "train.parquet", rollouts)
    lab.run(AS_SAMPLED, "algorithm.num_solutions_per_prompt=3")
    assert {row[:2] for row in lab.labels()} == {(p.id, i) for p in TRAIN for i in (0, 2)}
    assert len(lab.learnt[0]) == 6


def test_it_learns_from_the_base_or_from_the_starting_policy(
    lab: Lab, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    init = str(lab.folder / "init")
    save_policy(Policy(make_model(seed=1), lab.tokenizer), Path(init))
    lab.run(init=init, name="restarted")
    lab.run("algorithm.restart=false", init=init, name="going-on")
    for started, path in zip(lab.started, (lab.base, init), strict=True):
        weights = load_policy(path, "float32", CPU).model.state_dict()
        assert started.keys() == weights.keys()
        for name, tensor in weights.items():  # but for the rows of the labels
            assert torch.equal(started[name][: len(tensor)], tensor)


@pytest.mark.parametrize("moment", ["learning", "validation", "saving"])
def test_a_killed_run_goes_on(lab: Lab, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = "runtime.checkpoint_seconds=0"
    straight = Path(lab.run(checkpoints, name="straight").path)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        if moment == "learning":
            lab.kill_at_step = 2
        elif moment == "validation":
            dying.setattr(lab.sampler, "right_under", {268: 0})  # and under [GOOD] nothing
        else:
            dying.setattr(job_module, "save_policy", die)
        with pytest.raises((Killed, KeyError)):
            lab.run(checkpoints, name="killed")
    lab.kill_at_step = None
    asked = len(lab.sampler.calls)
    resumed = Path(lab.run(checkpoints, name="killed").path)
    # After a kill in validation the second label, earlier both.
    assert len(lab.sampler.calls) - asked == {"learning": 2, "validation": 1, "saving": 2}[moment]
    files = sorted(file.name for file in straight.iterdir())
    assert "model.safetensors" in files
    assert sorted(file.name for file in resumed.iterdir()) == files
    logs = [reproducible(folder.parent / "metrics.jsonl") for folder in (resumed, straight)]
    assert logs[0] == logs[1]
    for file in [*files, "../rollouts/labels.parquet"]:
        assert (resumed / file).read_bytes() == (straight / file).read_bytes()


def test_what_is_learnt_is_not_learnt_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = lab.run()
    metrics = (lab.folder / "run" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(job_module, "fit", refuse)
    monkeypatch.setattr(rcrl, "step_returns", refuse)
    assert lab.run() == result
    assert (lab.folder / "run" / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize(
    ("text", "overrides", "counts"),
    [
        # Nine steps, all bad; of one right solution to each wrong one there is none.
        (" 1+1=2\n1+1=2\n#### 2", [AS_SAMPLED], "got 9 steps with other labels, of 9 in all"),
        (" 1+1=2\n1+1=2\n#### 2", [], "got 0 steps with other labels, of 9 in all"),
        ("\n", [], "got 0 steps with other labels, of 0 in all"),
    ],
)
def test_there_must_be_a_step_with_the_best_label(
    text: str, overrides: list[str], counts: str, lab: Lab
) -> None:
    write_samples(lab.folder / "rollouts", lab.tokenizer, lambda _: text)
    with pytest.raises(UserError) as refused:
        lab.run(*overrides)
    message = str(refused.value)
    assert message.startswith("algorithm=rcrl must have steps labelled [GOOD] to learn from; got ")
    assert counts in message
    assert "lower the last of algorithm.thresholds" in message
    assert lab.learnt == []
    assert not (lab.folder / "run" / "policy").exists()


def test_problems_of_this_file_are_what_the_docstring_says() -> None:
    assert problem("t0", 2, 3, 4) == T0
    assert (right(T0), wrong(T0)) == (" 2+3=5\n5*4=20\n#### 20", " 2+3=5\n1+1=2\n#### 2")
