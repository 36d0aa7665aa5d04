"""The model card of a run's policy: how it was made and evaluated, in the form of the hub.

All of it is read from the run's folder, and the evaluation of the policy that it started from where
another run made that, when the card is asked for: it never shows an older evaluation. Of absolute
paths only the last part is told.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from reasonrl.config.base import decisive_values
from reasonrl.config.identity import decisive, prerequisites, training_set
from reasonrl.config.reward import RewardConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.problems.prompts import form_of
from reasonrl.problems.tables import READERS
from reasonrl.report.catalogue import text_of
from reasonrl.runs.folder import GAIN, OWN_REWARD, RunFolder, read_config, run_folder
from reasonrl.runs.provenance import PACKAGE
from reasonrl.runs.result import AFTER, BEFORE, read_result

PROGRAM = "train.py"
# Overrides that say where and how a run is made.
OF_MACHINE = ("hydra", "runtime", "tracking", "model.device", "model.resources")
USE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}")"""


def card(run: RunFolder, repo: str) -> str:
    """The README.md of a finished run's policy. Raises UserError for a run that makes none.

    repo: the hub id from which the card says that the policy is loaded.
    """
    config = read_config(run)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(config), sort_keys=False, allow_unicode=True)}---",
        f"# {repo.rpartition('/')[2]}",
        f"A policy that `{config.algorithm.name}` of reasonrl has trained, as run "
        f"`{run.path.name}`. It has no licence of its own: those of the base model and of the data "
        "apply.",
        f"## How it was made\n\n{_made(config)}",
        f"## Prompts\n\n{_prompts(run, config)}",
        f"## Evaluation\n\n{_evaluations(run, config)}",
        f"## Loading it\n\n{_fenced(USE.format(repo=repo), 'python')}",
        f"## Repeating it\n\n{_repeated(run)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: TrainConfig) -> dict[str, Any]:
    base, data = _hub_id(config.model.path), _data_id(config)
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base else {}),
        **({"datasets": [data]} if data else {}),
        "tags": ["reasonrl", "reasoning", config.algorithm.name],
    }


def _made(config: TrainConfig) -> str:
    whole, dataset = decisive(config, defaults=True), training_set(config)
    sizes = {
        "training": dataset.train_size,
        "validation": dataset.validation_size,
        "with a solution to learn from": dataset.num_references,
    }
    counts = [f"{'all' if n is None else n} {what}" for what, n in sizes.items()]
    data = _data_id(config) or Path(config.dataset.path or "").name
    lines = [
        f"- Base model: {_hub_id(config.model.path) or config.model.name}",
        f"- Started from: `init={config.init.name}`",
        *(_settings("its run", one) for one in (config.init.sft, config.init.ei) if one),
        _settings("Algorithm", config.algorithm),
    ]
    if "reward" in whole:
        own = f"; {_own_reward(config.reward)}" if config.reward.code is not None else ""
        lines.append(f"- Reward: {_listed(whole['reward'])}{own}")
    lines.append(
        f"- Dataset: `{config.dataset.name}`{f' ({data})' if data else ''}; problems: "
        f"{', '.join(counts)}"
    )
    if config.dataset.path is not None and dataset.content is not None:
        lines[-1] += f"; hash of what they hold: `{dataset.content}`"
    lines.append(f"- Seed: {config.seed}")
    return "\n".join(lines)


def _own_reward(reward: RewardConfig) -> str:
    file, _, function = str(reward.code).rpartition(":")
    return (
        f"its function is `{function}` of `{Path(file).name}`, which the run's folder keeps as "
        f"`{OWN_REWARD}`"
    )


def _settings(what: str, settings: Any) -> str:
    return f"- {what}: {_listed(decisive_values(settings, defaults=True))}"


def _listed(values: Mapping[str, Any]) -> str:
    """``ei``, then ``rounds=2`` and so on; nothing of a file but its name, and no hashes."""
    shown = [f"`{values['name']}`"]
    for key, value in values.items():
        if key not in ("name", "content") and value is not None:
            text = Path(value).name if key in ("path", "run") else text_of(value)
            shown.append(f"`{key}={text}`")
    return ", ".join(shown)


def _prompts(run: RunFolder, config: TrainConfig) -> str:
    policy = read_result(run)
    lines = [f"It was trained with prompts of the form `{config.prompt.name}`, of this template:"]
    lines.append(_fenced(form_of(config).template))
    if config.prompt.name == "chat":
        lines.append("The chat template of its tokenizer makes the prompt of it.")
    if getattr(config.prompt, "system", None):
        lines.append(f"The system message is:\n\n{_fenced(config.prompt.system)}")  # type: ignore[attr-defined]
    if policy.few_shot:
        lines.append(f"{config.dataset.num_exemplars} solved problems come before the question.")
    if policy.labels:
        lines.append(
            f"It puts a label before each step, one of {', '.join(policy.labels)} from the worst "
            f"return to the best, whose token ids are {list(policy.step_label)}."
        )
    if config.dataset.stop:
        stops = ", ".join(
            f"`{json.dumps(stop, ensure_ascii=False)}`" for stop in config.dataset.stop
        )
        lines.append(f"A completion ends at {stops}.")
    return "\n\n".join(lines)


def _evaluations(run: RunFolder, config: TrainConfig) -> str:
    found = [_evaluation(*one) for one in _evaluated(run, config)]
    return "\n\n".join(found) or "It wasn't evaluated."


def _evaluated(run: RunFolder, config: TrainConfig) -> Iterator[tuple[str, Any, Any, Any]]:
    """Each protocol, with what was estimated before, after, and of the difference."""
    earlier = prerequisites(config).get("init")
    for file in sorted(run.evaluation.glob(f"*/{GAIN}")):
        protocol = file.parent.name
        before = file.parent / BEFORE
        if earlier is not None:
            start = RunFolder(run.path.parent / run_folder(earlier).path.name)
            before = start.evaluated(protocol) / AFTER
        after = file.parent / AFTER / "metrics.json"
        yield protocol, _read(before / "metrics.json"), _read(after), _read(file)


def _evaluation(protocol: str, before: Any, after: Any, gain: Any) -> str:
    metrics = after.get("estimates", {})
    count = next((one["n"] for one in metrics.values()), 0)
    rows = [
        f"| {name} | {_estimate(before, name)} | {_estimate(after, name)} "
        f"| {_estimate(gain, name, '+')} |"
        for name in metrics
    ]
    return "\n".join(
        [
            f"By protocol `{protocol}` (split, then numbers of problems and of samples, K, where "
            f"they are set, and their temperature), on {count} problems. maj@1 is greedy. In "
            "brackets are 95% intervals over problems; gains are paired by problem.",
            "",
            "| metric | before | after | gain |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def _estimate(estimates: Any, name: str, sign: str = "") -> str:
    one = estimates.get("estimates", {}).get(name)
    if one is None:
        return "–"
    value, low, high = (format(100 * one[key], f"{sign}.1f") for key in ("value", "low", "high"))
    return f"{value}% [{low}, {high}]"


def _repeated(run: RunFolder) -> str:
    attempts = _read(run.provenance).get("attempts")
    if not attempts:
        return "Nothing says with which command and code it was made."
    made = attempts[0]
    version = made.get("commit") or "unknown"
    if made.get("dirty"):
        version += f" with changes (SHA-256 of the difference: {made.get('diff_sha256')})"
    packages = {"python": made.get("python"), **made.get("packages", {})}
    lines = [f"- Code: reasonrl, commit {version}"]
    lines.append(f"- Packages: {', '.join(f'{k} {v}' for k, v in packages.items() if v)}")
    program, *said = made.get("command") or [""]
    if Path(program).name == PROGRAM:
        command = _fenced(shlex.join(["python", PROGRAM, *_told(said)]), "bash")
        lines.insert(
            0,
            "The command that it was made by, or what needed it (of an absolute path, only the "
            "end). On files that hold the same it makes a run of the same name:\n\n"
            f"{command}\n",
        )
    return "\n".join(lines)


def _told(command: Sequence[str]) -> list[str]:
    """The overrides that others repeat: not those of a machine, and of a path only its end."""
    kept = [one for one in command if not one.lstrip("+~").startswith(OF_MACHINE)]
    return [re.sub(r"([=:,\['\"])[~/][^,\]\s]*/", r"\1", one) for one in kept]


def _data_id(config: TrainConfig) -> str | None:
    dataset = config.dataset
    return _hub_id(dataset.path or getattr(dataset, "hub", None) or "")


def _hub_id(path: str) -> str | None:
    """The path if it is a hub id; None for a folder, also one that comes with the project.

    What is named like a file of problems is one, though it needn't be on this machine.
    """
    is_file = Path(path).suffix.lower() in READERS
    is_local = is_file or Path(path).exists() or (PACKAGE.parent / path).exists()
    return path if re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and not is_local else None


def _read(file: Path) -> Any:
    """What a JSON file holds; {} where it isn't there or is damaged."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}


def _fenced(text: str, language: str = "") -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
