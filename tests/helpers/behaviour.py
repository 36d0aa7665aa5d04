"""What the package does, as plain values: tests/golden/behaviour.json holds them.

    python -m tests.helpers.behaviour

writes the file anew, which is right only after a change that is meant to change behaviour. The
package is used in this module alone, so moving its parts means editing its imports, nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.identity import prerequisites, training_set
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.estimate import work
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.problems import load_problems
from reasonrl.runs.folder import RunFolder, run_folder
from reasonrl.runs.metrics_log import reproducible
from reasonrl.types import Problem
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, small_config
from tests.helpers.rules import RULES

Values = dict[str, Any]

GOLDEN = ROOT / "tests" / "golden" / "behaviour.json"
DATA = Path(os.environ.get("REASONRL_DATA", ROOT.parent / "shared" / "data"))

ALGORITHMS = ("sft", "ei", "ppo", "rcrl", "sample", "steps", "orm", "sorm")
REWARDS = ("sparse", "dense", "orm", "sorm")
INITS = ("pretrained", "sft", "ei", "run")
DATASETS = ("stories", "gsm8k", "svamp")
GSM8K, SVAMP = (f"dataset.path={DATA / name}" for name in ("gsm8k", "svamp"))

# Settings that change what a run does or needs, beyond the choices above.
VARIANTS = [
    ["algorithm=rft"],
    ["algorithm=grpo"],
    ["algorithm=dr_grpo"],
    ["algorithm=rloo"],
    ["algorithm=reinforce"],
    ["algorithm=maxrl"],
    ["algorithm=dapo"],
    ["algorithm=vineppo"],
    ["algorithm=ppo", "sampler=vllm", "algorithm.off_policy_correction=tis"],
    ["algorithm=rest_em", "init=pretrained"],
    ["seed=3", "evaluation.split=ood"],
    ["dataset.reward_train_size=null", "algorithm=orm"],
    ["dataset.num_references=null", "algorithm=sft"],
    ["algorithm.rounds=3", "algorithm.num_samples_per_prompt=[4,2]"],
    ["algorithm=ppo", "algorithm.trainable=lora"],
    ["algorithm=ppo", "algorithm.trainable=top"],
    ["algorithm=ppo", "algorithm.validate_every=3"],
    ["algorithm=orm", "algorithm.trainable=head"],
    ["algorithm=sorm", "algorithm.trainable=lora"],
    ["algorithm=rcrl", "algorithm.policy=null"],
    ["algorithm=rcrl", "algorithm.returns=solution"],
    ["algorithm=rcrl", "algorithm.labels=null", "algorithm.thresholds=[]"],
    ["algorithm=rcrl", "algorithm.labels=[a,b,c]", "algorithm.thresholds=[0.1,1]"],
    ["algorithm=rcrl", "reward=sorm", "reward.policy=null"],
    ["init=ei", "init.sft=null"],
    ["init=ei", "init.sft=null", "init.run=outputs/runs/x"],
    ["reward=orm", "reward.policy=null"],
    ["reward=orm", "reward.run=outputs/runs/x"],
    ["reward=sorm", "reward.run=outputs/runs/x", "algorithm=ppo"],
    ["reward=sorm", "algorithm=sft", "init=pretrained"],
    ["experiment=gsm8k-smollm2", GSM8K],
    ["experiment=gsm8k-smollm2-orm", GSM8K],
    ["experiment=svamp-smollm2", SVAMP],
    ["experiment=svamp-smollm2-ppo", SVAMP],
    ["experiment=svamp-smollm2-rcrl", SVAMP],
    ["experiment=rcrl-label-ratio"],
]

# Of the runs that are made: fine-tuned just so far that some of what is sampled is right.
SIZES = ["dataset.train_size=24", "dataset.reward_train_size=24", "dataset.num_references=24"]
SIZES += ["dataset.validation_size=6", "dataset.test_size=4", "evaluation.num_samples_per_prompt=2"]
SIZES += ["init.sft.batch_size=4", "init.sft.epochs=8", "dataset.max_new_tokens=32"]
EI = ["rounds=2", "num_samples_per_prompt=[8]", "batch_size=8", "epochs=2"]
PPO = ["iterations=2", "rollouts_per_iteration=8", "batch_size=8"]
STEPS = ["num_solutions_per_prompt=2", "num_continuations=2"]
RCRL = ["sample.num_samples_per_prompt=2", *STEPS, "batch_size=4", "epochs=1"]
ORM = ["sample.num_samples_per_prompt=2", "batch_size=16", "epochs=1"]
SORM = [*ORM, *STEPS]


def _under(group: str, settings: Sequence[str]) -> list[str]:
    return [f"{group}.{setting}" for setting in settings]


REWARD = [*_under("reward.model", SORM), *_under("reward.policy", EI)]
MADE = [
    ["algorithm=ei", *_under("algorithm", EI)],  # fine-tuned before
    ["algorithm=ppo", *_under("algorithm", PPO), "reward=dense"],
    ["algorithm=ppo", *_under("algorithm", PPO), "reward=sorm", *REWARD],
    ["algorithm=rcrl", *_under("algorithm", RCRL), *_under("algorithm.policy", EI)],
    ["algorithm=orm", *_under("algorithm", ORM), *_under("init.ei", EI)],
    ["algorithm=sorm", *_under("algorithm", SORM), *_under("init.ei", EI)],
]


def planning() -> dict[str, Values]:
    """combinations: each choice of options, with the run it is or the error that refuses it.
    runs: all of these and what they need, with what is known of them beforehand.
    """
    combinations: Values = {}
    runs: Values = {}
    for choices, config in (*_combinations(), *_variants()):
        try:
            planned = _planned(resolve(config))
        except UserError as error:
            combinations[choices] = {"error": str(error)}
            continue
        combinations[choices] = {"run": _name(planned)}
        for one in planned.in_order():
            facts = _facts(one)
            if runs.setdefault(_name(one), facts) != facts:
                raise AssertionError(f"{_name(one)} is two runs: {runs[_name(one)]} and {facts}")
    return {"combinations": combinations, "runs": runs}


def rules() -> Values:
    """What each broken rule says, by the overrides that break it."""
    said: Values = {}
    with _conf():
        for broken, others, _ in RULES:
            overrides = [*others, broken]
            try:
                resolve(compose("train", overrides))
            except UserError as error:
                said[" ".join(overrides)] = str(error)
    return said


def made(outputs: Path) -> dict[str, Values]:
    """Tiny runs of all algorithms, made on one thread.

    metrics: what is about the same on every machine. digests: SHA-256 of the metrics, without
    times, and of all results, which differ between machines.
    """
    metrics: Values = {}
    digests: Values = {}
    for overrides in MADE:
        planned = plan(small_config(outputs, *SIZES, *overrides))
        ensure_done(planned, Progress())
        for one in planned.in_order():
            records = reproducible(one.run.metrics)
            metrics[_name(one)] = {"lines": len(records), "first": records[0] if records else {}}
            digests[_name(one)] = {
                "metrics": _sha256([json.dumps(records).encode()]),
                "completions": _sha256(map(_rows, _files(one.run, "parquet"))),
                "evaluation": _sha256(
                    f.read_bytes() for f in _files(one.run, "json", "evaluation")
                ),
                "weights": _sha256(
                    f.read_bytes()
                    for f in _files(one.run, "safetensors")
                    if "rounds" not in f.parts  # copies, for longer runs
                ),
            }
    return {"metrics": metrics, "digests": digests}


def machine() -> str:
    """What the bits of a result depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = ".".join(said.get(key, "?") for key in ("cpu family", "model", "stepping"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{said.get('model name', '?')} {numbers}, {capability}, torch {torch.__version__}"


def _conf() -> Any:
    return initialize_config_dir(str(ROOT / "conf"), version_base="1.3")


def _combinations() -> Iterator[tuple[str, DictConfig]]:
    """Each choice of algorithm, reward, init and dataset.

    Hydra takes a tenth of a second for a composition; reward and dataset don't depend on the rest.
    """
    with _conf():
        rewards = {name: compose("train", [f"reward={name}"]).reward for name in REWARDS}
        datasets = {name: compose("train", _dataset(name)).dataset for name in DATASETS}
        for algorithm, init in itertools.product(ALGORITHMS, INITS):
            run = ["init.run=outputs/runs/x"] if init == "run" else []
            composed = compose("train", [f"algorithm={algorithm}", f"init={init}", *run])
            for reward, dataset in itertools.product(REWARDS, DATASETS):
                config = copy.deepcopy(composed)
                config.reward, config.dataset = rewards[reward], datasets[dataset]
                choices = f"algorithm={algorithm} reward={reward} init={init} dataset={dataset}"
                yield choices, config


def _dataset(name: str) -> list[str]:
    return [f"dataset={name}", *([] if name == "stories" else [f"dataset.path={DATA / name}"])]


def _variants() -> Iterator[tuple[str, DictConfig]]:
    with _conf():
        for overrides in VARIANTS:
            named = [o for o in overrides if not o.startswith("dataset.path=")]
            yield " ".join(named), compose("train", overrides)


def _planned(config: TrainConfig) -> Plan:
    """As it is planned, but without a look at the model, or at a run to start from."""
    validation = _problems(config.dataset, "validation")
    return Plan(
        config=config,
        run=run_folder(config),
        prerequisites={gives: _planned(one) for gives, one in prerequisites(config).items()},
        base=config.model.path,
        has_model=False,
        shape=None,
        train=_problems(training_set(config), "train"),
        validation=validation[config.dataset.num_exemplars :],
        exemplars=validation[: config.dataset.num_exemplars],
        test=_problems(config.dataset, config.evaluation.split),
    )


_loaded: dict[str, list[Problem]] = {}


def _problems(dataset: DatasetConfig, split: str) -> list[Problem]:
    key = f"{dataset} {split}"
    if key not in _loaded:
        _loaded[key] = load_problems(dataset, split)
    return _loaded[key]


def _name(planned: Plan) -> str:
    return planned.run.path.name


def _facts(planned: Plan) -> Values:
    return {
        "needs": {gives: _name(one) for gives, one in planned.prerequisites.items()},
        "outline": planned.config.algorithm.outline(planned.config),
        "work": asdict(work(planned)),
    }


def _files(run: RunFolder, suffix: str, folder: str = "") -> list[Path]:
    """In an order that doesn't depend on the name of the protocol they are in."""
    files = (run.path / folder).rglob(f"*.{suffix}")
    return sorted(files, key=lambda file: [part for part in file.parts if part != run.protocol])


def _rows(file: Path) -> bytes:
    """A table's content, which the version of its format has no part in."""
    return json.dumps(pq.read_table(file).to_pylist(), default=str).encode()


def _sha256(contents: Iterable[bytes]) -> str | None:
    """Of all, one after another; None if there are none."""
    joined = b"".join(contents)
    return hashlib.sha256(joined).hexdigest() if joined else None


@cache
def golden() -> dict[str, Values]:
    """What the file holds, by section and name."""
    return json.loads(GOLDEN.read_text())


def differences(then: Values, now: Values) -> list[str]:
    """What isn't as it was: one text for each entry, a missing or new one too."""
    return [
        f"{name}\n    was {_line(then.get(name))}\n    is  {_line(now.get(name))}"
        for name in {**then, **now}
        if name not in then or name not in now or _line(then[name]) != _line(now[name])
    ]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write() -> None:
    """Writes the file anew, an entry a line."""
    with tempfile.TemporaryDirectory() as folder:
        runs = made(Path(folder) / "outputs")
    sections = {
        **planning(),
        "rules": rules(),
        "metrics": runs["metrics"],
        "digests": {machine(): runs["digests"]},
    }
    blocks = []
    for section, entries in sections.items():
        lines = ",\n".join(f"{_line(name)}: {_line(value)}" for name, value in entries.items())
        blocks.append(f"{_line(section)}: {{\n{lines}\n}}")
    GOLDEN.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


if __name__ == "__main__":
    write()
