"""Return-Conditioned RL from a configuration to a finished run, beside the other two algorithms."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasonrl import job
from reasonrl.algorithms import rcrl
from reasonrl.cli.evaluate import evaluate_and_show as evaluate_py
from reasonrl.config.identity import prerequisites, training_set
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.evaluation.summary import Evaluation, read_estimates
from reasonrl.learning.optimization import Optimization
from reasonrl.learning.supervised import Example
from reasonrl.pipeline import execute
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.policy.policy import Policy, load_tokenizer, save_policy
from reasonrl.problems import load_problems
from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.result import read_result
from reasonrl.sampling import ENGINES, SamplingParams, TransformersEngine
from reasonrl.sampling.rollouts import write_rollouts
from reasonrl.types import Prompt
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, SMALL, small_config
from tests.helpers.jobs import job_of, sampled
from tests.helpers.kill_and_resume import differences, snapshot
from tests.helpers.scripted import opening
from tests.helpers.tokenizers import byte_level, ids_of

DATA = Path(os.environ.get("REASONRL_DATA", ROOT.parent / "shared" / "data"))

# Fine-tuned just so far that some of what is sampled is right.
SIZES = ["dataset.train_size=24", "dataset.reward_train_size=24", "dataset.num_references=24"]
PROTOCOL = "test-n4-k2-t0.7"
SIZES += ["dataset.validation_size=6", "dataset.test_size=4", "evaluation.num_samples_per_prompt=2"]
SIZES += ["init.sft.batch_size=4", "init.sft.epochs=8", "dataset.max_new_tokens=32"]

Settings = dict[str, Any]
EI: Settings = {"rounds": 1, "num_samples_per_prompt": [4], "batch_size": 8, "epochs": 1}
PPO: Settings = {"iterations": 2, "rollouts_per_iteration": 8, "batch_size": 8}
SAMPLE: Settings = {"sample.num_samples_per_prompt": 2}
STEPS: Settings = {"num_solutions_per_prompt": 2, "num_continuations": 2}
RCRL: Settings = {**SAMPLE, **STEPS, "batch_size": 4, "epochs": 1}
LEARNED: Settings = {**SAMPLE, "batch_size": 16, "epochs": 1}

FIRST = ("sft", "ei-sparse", "sample")  # what every run of RCRL needs


def under(group: str, settings: Settings) -> list[str]:
    return [f"{group}.{key}={value}" for key, value in settings.items()]


OVERRIDES = {
    "ei": ["algorithm=ei", *under("algorithm", EI)],
    "ppo": ["algorithm=ppo", *under("algorithm", PPO)],
    "rcrl": ["algorithm=rcrl", *under("algorithm.policy", EI), *under("algorithm", RCRL)],
}


class Killed(BaseException):
    pass


def dies(*_: object, **__: object) -> None:
    raise Killed


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


@dataclass(frozen=True)
class Finished:
    """planned: by algorithm. snapshots: of the outputs, after each of them."""

    planned: dict[str, Plan]
    snapshots: list[dict[Path, int]]
    outputs: Path
    configure: Callable[..., TrainConfig]

    @property
    def run(self) -> RunFolder:
        return self.planned["rcrl"].run

    @property
    def runs(self) -> dict[str, RunFolder]:
        """By their names, as far as these say what they are."""
        return {short_name(one): one.run for p in self.planned.values() for one in p.in_order()}

    def copied_to(self, outputs: Path, *names: str) -> Path:
        for name in names:
            path = self.runs[name].path
            shutil.copytree(path, outputs / "runs" / path.name)
        return outputs


def short_name(planned: Plan) -> str:
    return planned.run.path.name.split("-tiny")[0]


def names(planned: Plan) -> list[str]:
    return [short_name(one) for one in planned.in_order()]


def state_of(run: RunFolder) -> tuple[str, int]:
    status = read_status(run)
    assert status is not None
    return status.state, status.attempt


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The three algorithms, one after another."""
    outputs = tmp_path_factory.mktemp("rcrl") / "outputs"
    configure = partial(small_config, outputs)
    planned, snapshots = {}, []
    for name, overrides in OVERRIDES.items():
        planned[name] = plan(configure(*SIZES, *overrides))
        ensure_done(planned[name], Progress())
        snapshots.append(snapshot(outputs))
    return Finished(planned, snapshots, outputs, configure)


# --- what is made, and once


def test_the_runs_it_needs_come_first(finished: Finished) -> None:
    assert names(finished.planned["rcrl"]) == ["sft", "ei-sparse", "sample", "steps", "rcrl-sparse"]
    sample, steps = (finished.planned["rcrl"].prerequisites[k] for k in ("rollouts", "steps"))
    assert steps.prerequisites["rollouts"] == sample
    assert sample.prerequisites["init"].run == finished.planned["ei"].run


def test_nothing_that_algorithms_share_is_made_twice(finished: Finished) -> None:
    after_ei, after_ppo, after_rcrl = finished.snapshots
    assert after_ei.items() < after_ppo.items() < after_rcrl.items()  # nothing was touched again
    made = {path.relative_to(finished.outputs).parts[1] for path in after_rcrl}
    assert made == {run.path.name for run in finished.runs.values()}
    assert set(finished.runs) == {
        *("sft", "ei-sparse", "ppo-sparse", "sample", "steps", "rcrl-sparse")
    }
    assert {state_of(run) for run in finished.runs.values()} == {("done", 1)}


def test_the_same_plan_again_does_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "transformers", opening(refuse))
    before = snapshot(finished.outputs)
    again = plan(finished.planned["rcrl"].config)
    ensure_done(again, Progress())
    assert again.run == finished.run
    assert snapshot(finished.outputs) == before


# --- its record


def test_a_run_leaves_its_record(finished: Finished) -> None:
    run = finished.run
    files = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert files >= {
        "rollouts/labels.parquet",
        "policy/config.json",
        "policy/model.safetensors",
        "policy/tokenizer.json",
        "evaluation/validation/label-0.parquet",
        "evaluation/validation/label-1.parquet",
        *(f"evaluation/{PROTOCOL}/{when}/greedy.parquet" for when in ("after", "worst")),
        *(f"evaluation/{PROTOCOL}/{when}/samples.parquet" for when in ("after", "worst")),
        *(f"evaluation/{PROTOCOL}/{when}/metrics.json" for when in ("after", "worst")),
        "learning_curve.png",
        "metrics.jsonl",
    }
    # Before is the after of the run that it starts from; what it learns from is others'.
    assert {path.name for path in run.evaluation.iterdir()} == {PROTOCOL, "validation"}
    assert {path.name for path in run.evaluated(PROTOCOL).iterdir()} == {
        *("after", "worst", "gain.json", "conditioning_gap.json")
    }
    assert {path.name for path in run.rollouts.iterdir()} == {"labels.parquet"}
    assert not (run.path / "work").exists()
    # The tiny tokenizer has 268 tokens; each label has the next id.
    assert json.loads(run.result.read_text()) == {
        "path": str(run.policy),
        "few_shot": False,
        "labels": {"[BAD]": [268], "[GOOD]": [269]},
    }
    records = read_metrics(run.metrics)
    steps = [m["step"] for m in records if "rcrl/loss" in m]
    (summary,) = (m for m in records if "rcrl/conditioning_gap" in m)
    assert steps == list(range(1, len(steps) + 1))
    gap = summary["rcrl/maj@1_[GOOD]"] - summary["rcrl/maj@1_[BAD]"]
    assert summary["rcrl/conditioning_gap"] == pytest.approx(gap)
    assert summary["rcrl/solutions_right"] == 0.5  # solution_ratio=1


def test_its_labels_are_those_of_the_sampled_steps(finished: Finished) -> None:
    rows = pq.read_table(finished.run.rollouts / "labels.parquet").to_pylist()
    steps = pq.read_table(finished.runs["steps"].rollouts / "steps.parquet").to_pylist()
    for row, step in zip(rows, steps, strict=True):  # of the same completions, in the same order
        place = ("problem_id", "sample_index", "number")
        assert [row[key] for key in place] == [step[key] for key in place]
        last = step["correct"] is None
        assert row["return"] == (row["correct"] if last else step["correct"] / 2)
        assert row["label"] == ("[GOOD]" if row["return"] >= 0.5 else "[BAD]")
    assert {row["label"] for row in rows if row["learnt"]} == {"[BAD]", "[GOOD]"}


def test_the_conditioning_gap_is_the_best_less_the_worst(finished: Finished) -> None:
    folder = finished.run.evaluated(PROTOCOL)
    best, worst, gap = (
        read_estimates(folder / name)
        for name in ("after/metrics.json", "worst/metrics.json", "conditioning_gap.json")
    )
    assert {*gap} == {*best} == {"maj@1", "maj@2", "pass@1", "pass@2"}
    for metric, estimate in gap.items():
        assert estimate.value == pytest.approx(best[metric].value - worst[metric].value)


def test_no_label_is_part_of_what_is_graded(finished: Finished) -> None:
    files = [*finished.run.evaluation.rglob("*.parquet")]
    assert len(files) == 6
    for file in files:
        for row in pq.read_table(file).to_pylist():
            assert max(row["token_ids"]) < 268
            assert "[GOOD]" not in row["text"]
            assert "[BAD]" not in row["text"]


def test_its_policy_is_a_model_of_transformers_with_the_tokenizer_of_its_base(
    finished: Finished,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.run.policy)
    assert model.get_input_embeddings().num_embeddings == 270
    assert model.generation_config.suppress_tokens == [268, 269]
    assert len(AutoTokenizer.from_pretrained(finished.run.policy)) == 268


@dataclass
class Recording:
    """A sampler that keeps what it is asked."""

    sampler: Any
    calls: list[tuple[Sequence[Prompt], SamplingParams, int]]

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams, **options: Any) -> Any:
        self.calls.append((prompts, params, options["seed"]))
        return self.sampler.sample(prompts, params, **options)


def test_the_worst_label_is_asked_for_in_the_same_way(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = finished.copied_to(tmp_path / "outputs", *finished.runs)
    planned = plan(
        finished.configure(*SIZES, *OVERRIDES["rcrl"], f"runtime.outputs={outputs}"),
    )
    shutil.rmtree(planned.run.evaluated(PROTOCOL))
    status = planned.run.path / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))

    calls: list[tuple[Sequence[Prompt], SamplingParams, int]] = []
    monkeypatch.setitem(
        ENGINES,
        "transformers",
        opening(lambda *given, **how: Recording(TransformersEngine.open(*given, **how), calls)),
    )
    ensure_done(planned, Progress())
    assert differences(finished.run.evaluation, planned.run.evaluation) == []
    greedy, samples, *worst = calls
    assert greedy[1].step_label == samples[1].step_label == (269,)
    assert worst == [
        (prompts, replace(params, step_label=(268,)), seed)
        for prompts, params, seed in (greedy, samples)
    ]


def test_evaluate_py_asks_for_the_best(finished: Finished, tmp_path: Path) -> None:
    copied = RunFolder(tmp_path / finished.run.path.name)
    shutil.copytree(finished.run.path, copied.path)
    own, repeated = (run.evaluated(PROTOCOL) / "after" for run in (finished.run, copied))
    shutil.rmtree(repeated)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [f"run={copied.path}", "evaluation.num_samples_per_prompt=2"]
        evaluate_py(compose("evaluate", [*overrides, "runtime.threads=1"]))
    for name in ("greedy.parquet", "samples.parquet", "metrics.json"):
        assert (repeated / name).read_bytes() == (own / name).read_bytes()


def test_a_policy_that_is_asked_with_labels_is_no_start(finished: Finished) -> None:
    with pytest.raises(UserError) as refused:
        plan(finished.configure("algorithm=sft", "init=run", f"init.run={finished.run.path}"))
    assert str(refused.value) == (
        f"init.run={finished.run.path} must be a run whose policy is asked without labels; got "
        "algorithm=rcrl. Pass another run."
    )


# --- the command line


def small_conf(folder: Path) -> Path:
    """conf/ with small algorithms: in a sweep of algorithms one can't be given values alone."""
    conf = shutil.copytree(ROOT / "conf", folder / "conf")
    for name, settings in (("ei", EI), ("ppo", PPO), ("rcrl", RCRL)):
        file = conf / "algorithm" / f"{name}.yaml"
        values = OmegaConf.load(file)
        for key, value in settings.items():
            OmegaConf.update(values, key, value)
        OmegaConf.save(values, file)
    return conf


def test_a_sweep_of_the_three_ends_with_a_table(finished: Finished, tmp_path: Path) -> None:
    shared = ("sft", "ei-sparse", "ppo-sparse", "sample", "steps")
    outputs = finished.copied_to(tmp_path / "outputs", *shared)
    before = snapshot(outputs)
    swept = subprocess.run(
        [
            *(sys.executable, "train.py", "--config-path", str(small_conf(tmp_path)), "-m"),
            *("algorithm=ei,ppo,rcrl", "hydra.launcher.cluster=local"),
            *(f"runtime.outputs={outputs}", *SMALL, *SIZES),
        ],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert swept.returncode == 0, swept.stderr
    assert {p: t for p, t in snapshot(outputs).items() if p in before} == before
    run = outputs / "runs" / finished.run.path.name
    assert state_of(RunFolder(run)) == ("done", 1)
    assert differences(finished.run.path, run) == []

    table, _, given = swept.stdout.partition("comparison, by maj@1")[2].partition("was given")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    of = {row[0]: row for row in rows if row and row[0].startswith("algorithm=")}
    assert list(of) == ["algorithm=ei", "algorithm=ppo", "algorithm=rcrl"]
    # maj@1, its gain and pass@2's on the start, the conditioning gap
    assert [[cell[-1:] for cell in row[1:]] for row in of.values()] == [
        ["%", "%", "%", ""],
        ["%", "%", "%", ""],
        ["%", "%", "%", "%"],
    ]
    assert "samples: 16 of algorithm=ppo, 264 of algorithm=rcrl" in given  # no gain on another


# --- its forms

LEARNED_REWARD = [*under("reward.policy", EI), *under("reward.model", LEARNED)]
NUMBERS = ["algorithm.labels=null", "algorithm.thresholds=[]"]
FORMS = {
    "dense": (["reward=dense"], [*FIRST, "rcrl-dense"]),
    "orm": (["reward=orm", *LEARNED_REWARD], [*FIRST, "orm", "rcrl-orm"]),
    "sorm": (
        ["reward=sorm", *LEARNED_REWARD, *under("reward.model", STEPS)],
        [*FIRST, "steps", "sorm", "rcrl-sorm"],
    ),
    "solution": (
        ["algorithm.returns=solution", "algorithm.solution_ratio=inf"],
        [*FIRST, "rcrl-sparse"],
    ),
    "levels": (
        [
            "algorithm.labels=['[BAD]','[FAIR]','[GOOD]']",
            "algorithm.thresholds=[0.25,0.75]",
            "algorithm.shuffle_labels=true",
        ],
        [*FIRST, "steps", "rcrl-sparse"],
    ),
    "numbers": (NUMBERS, [*FIRST, "steps", "rcrl-sparse"]),
    "text": (
        [*NUMBERS, "algorithm.label_tokens=text"],
        [*FIRST, "steps", "rcrl-sparse"],
    ),
}
NUM_LABELS = {"levels": 3, "numbers": 11, "text": 11}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_ends_with_what_it_shares_untouched(form: str, finished: Finished) -> None:
    overrides, in_order = FORMS[form]
    before = snapshot(finished.outputs)
    planned = plan(finished.configure(*SIZES, *OVERRIDES["rcrl"], *overrides))
    ensure_done(planned, Progress())
    assert names(planned) == in_order
    shared = {one.run for one in planned.in_order()} & set(finished.runs.values())
    assert {run.path.name.split("-tiny")[0] for run in shared} == {*in_order} & {*(*FIRST, "steps")}
    assert planned.run != finished.run
    assert state_of(planned.run) == ("done", 1)
    assert {p: t for p, t in snapshot(finished.outputs).items() if p in before} == before

    labels = read_result(planned.run).labels
    assert len(labels) == NUM_LABELS.get(form, 2)
    own = form != "text"
    ids = [id for of_label in labels.values() for id in of_label]
    assert ids == list(range(268, 268 + len(labels))) if own else max(ids) < 268
    rows = pq.read_table(planned.run.rollouts / "labels.parquet").to_pylist()
    assert {row["label"] for row in rows} <= {*labels}
    if form == "solution":
        assert all(row["return"] == row["learnt"] == row["correct"] for row in rows)


# --- kills


def test_a_run_killed_anywhere_ends_the_same(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = finished.copied_to(tmp_path / "outputs", *FIRST, "steps")
    settings = (f"runtime.outputs={outputs}", "runtime.checkpoint_seconds=0")
    planned = plan(finished.configure(*SIZES, *OVERRIDES["rcrl"], *settings))
    run = planned.run
    assert run.path.name == finished.run.path.name
    counts = {"learnt": 0, "validated": 0}

    def counting(what: str, number: int, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which dies at this number."""

        def counted(*given: Any, **options: Any) -> Any:
            counts[what] += 1
            if counts[what] == number:
                raise Killed
            return call(*given, **options)

        return counted

    monkeypatch.setattr(Optimization, "step", counting("learnt", 3, Optimization.step))
    monkeypatch.setattr(job, "collect_rollouts", counting("validated", 2, job.collect_rollouts))
    with pytest.raises(Killed):
        ensure_done(planned, Progress())  # in the third step
    assert not run.policy.exists()
    with pytest.raises(Killed):
        ensure_done(planned, Progress())  # learnt, and validated under the worst label alone
    # The third step again, but not those before it.
    num_steps = len([m for m in read_metrics(finished.run.metrics) if "rcrl/loss" in m])
    assert counts == {"learnt": num_steps + 1, "validated": 2}
    assert num_steps > 2
    assert not run.policy.exists()
    for place, name in ((job, "save_policy"), (execute, "write_json")):
        with monkeypatch.context() as dying:
            dying.setattr(place, name, dies)
            with pytest.raises(Killed):
                ensure_done(planned, Progress())  # not saved again; saved, but not recorded
        assert run.policy.exists() == (place is execute)
        assert not run.result.exists()
    assert counts["learnt"] == num_steps + 1
    with monkeypatch.context() as dying:
        dying.setattr(Evaluation, "estimates", dies)
        with pytest.raises(Killed):
            ensure_done(planned, Progress())  # in the evaluation under the best label
    ensure_done(planned, Progress())
    assert state_of(run) == ("done", 6)
    assert not (run.path / "work").exists()
    assert differences(finished.run.path, run.path) == []


# --- what it must not see


def questions(problems: Sequence[Any]) -> set[str]:
    return {problem.question for problem in problems}


def test_no_question_that_is_asked_later_is_learnt_from(finished: Finished) -> None:
    rows = pq.read_table(finished.runs["sample"].rollouts / "train.parquet", columns=["problem_id"])
    planned = finished.planned["rcrl"]
    problem_of = {problem.id: problem for problem in planned.train}
    learnt = questions([problem_of[name] for name in set(rows["problem_id"].to_pylist())])
    assert len(learnt) == 24
    for split in ("validation", "test", "ood"):
        assert learnt.isdisjoint(questions(load_problems(planned.config.dataset, split)))


@pytest.mark.parametrize(("dataset", "size"), [("gsm8k", 7217), ("svamp", 630)])
def test_no_question_of_a_benchmark_s_test_is_learnt_from(dataset: str, size: int) -> None:
    folder = DATA / dataset
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set REASONRL_DATA to a folder that holds {dataset}/")
    config = composed("algorithm=rcrl", f"dataset={dataset}", f"dataset.path={folder}")
    learnt = load_problems(training_set(prerequisites(config)["rollouts"]), "train")
    assert len(learnt) == size
    for split in ("validation", "test"):
        assert questions(learnt).isdisjoint(questions(load_problems(config.dataset, split)))


def composed(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def brackets(folder: Path) -> Path:
    """Twice a number, asked and answered with the labels' own texts."""
    rows = [
        {
            "question": f"[GOOD] twice {i}, or [BAD]?",
            "answer": f"[GOOD] 2*{i}={2 * i}\n#### {2 * i}",
        }
        for i in range(2, 261)  # the last 256 are for validation: three to learn from
    ]
    folder.mkdir()
    for name in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def learnt_from(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """What a job's learner is given."""
    examples: list[Example] = []
    fit = job.Job.fit

    def recording(*given: Any, **options: Any) -> int:
        _, _, learnt, *_ = given
        examples.extend(learnt)
        return fit(*given, **options)

    monkeypatch.setattr(job.Job, "fit", recording)
    return examples


def test_text_that_reads_like_a_label_is_none(
    tmp_path: Path, make_model: Callable[..., Any], learnt_from: list[Example]
) -> None:
    tokenizer = byte_level()  # EOS, which is 0, and 256 bytes: of the labels one is 257, one 258
    folder = tmp_path / "policy"
    save_policy(Policy(make_model(vocab_size=257), tokenizer), folder)
    config = composed(
        *("algorithm=rcrl", "algorithm.policy=null", "reward=dense"),
        *("algorithm.num_solutions_per_prompt=2", "algorithm.epochs=1"),
        *("dataset=gsm8k", f"dataset.path={brackets(tmp_path / 'data')}"),
        *(f"model.path={folder}", "dataset.max_new_tokens=8"),
    )
    problems = load_problems(config.dataset, "train")
    right, wrong = " [GOOD] 2*{0}={1}\n#### {1}", " [BAD] 2*{0}=1\n[GOOD] #### 1"
    rollouts = [
        rollout
        for i, problem in enumerate(problems, 2)
        for rollout in sampled(tokenizer, problem, [t.format(i, 2 * i) for t in (right, wrong)])
    ]
    write_rollouts(tmp_path / "rollouts" / "train.parquet", rollouts)
    with job_of(
        config, str(folder), tmp_path / "run", tmp_path / "rollouts", train=problems
    ) as made:
        saved = rcrl.run(made, made.config.algorithm)

    assert saved.labels == {"[BAD]": (257,), "[GOOD]": (258,)}

    def of(text: str) -> tuple[int, ...]:
        return tuple(ids_of(tokenizer, text))

    expected = []
    for i in (2, 3, 4):
        prompt = of(f"Q: [GOOD] twice {i}, or [BAD]?\nA:")
        for label, steps in (
            (258, (f" [GOOD] 2*{i}={2 * i}\n", f"#### {2 * i}")),
            (257, (f" [BAD] 2*{i}=1\n", "[GOOD] #### 1")),
        ):
            first, last = map(of, steps)
            mask = (False, *(True,) * len(first), False, *(True,) * (len(last) + 1))
            expected.append(Example(prompt, (label, *first, label, *last, 0), mask))
    assert learnt_from == expected
    learnt = load_tokenizer(saved.path)
    assert max(ids_of(learnt, "[GOOD] or [BAD]")) < 257
    for file in (tmp_path / "run" / "evaluation" / "validation").iterdir():
        assert max(max(row) for row in pq.read_table(file)["token_ids"].to_pylist()) < 257
