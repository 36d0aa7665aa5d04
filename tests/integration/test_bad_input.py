"""What a mistake gets: one line that says what to do, exit code 2, and nothing left behind.

A few real processes, and the rest by the same functions in this one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from hydra import compose, initialize_config_dir

from reasonrl.cli.evaluate import evaluate_and_show as evaluate
from reasonrl.cli.train import train
from reasonrl.util.entry_point import one_line_errors
from tests.helpers.configs import ROOT, TINY

ENTRY_POINTS = {"train": train, "evaluate": evaluate}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # model.path=models/tiny
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    transformers.utils.logging.set_verbosity_error()  # as the entry points do
    transformers.utils.logging.disable_progress_bar()


def copied_model(folder: Path, **changes: object) -> Path:
    """models/tiny with another config.json."""
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def run(name: str, *overrides: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, list(overrides))
    ENTRY_POINTS[name](config)


def refusal(capfd: pytest.CaptureFixture[str], outputs: Path, name: str, *overrides: str) -> str:
    """The one line on stderr, from after its ``error: `` on."""
    return only_line(refused(capfd, outputs, name, *overrides))


def refused(capfd: pytest.CaptureFixture[str], outputs: Path, name: str, *overrides: str) -> str:
    """What is on stderr when an entry point has refused to work."""
    with pytest.raises(SystemExit) as exited, one_line_errors():
        run(name, f"runtime.outputs={outputs}", *overrides)
    assert exited.value.code == 2
    assert not outputs.exists()
    return capfd.readouterr().err


def only_line(stderr: str) -> str:
    start, _, message = stderr.partition("error: ")
    assert start == ""
    line, rest = message.split("\n", 1)
    assert rest == ""
    return line


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        # An unknown option lists the options, a mistyped key or group suggests the right one.
        (
            "train",
            "model=huge",
            "model=huge must be one of 13b, 7b, llama-3.2-1b, qwen2.5-0.5b, qwen2.5-1.5b, small, "
            "smollm2-135m, smollm2-360m, tiny.",
        ),
        (
            "train",
            "algorithm=dpo",
            "algorithm=dpo must be one of dapo, dr_grpo, ei, grpo, maxrl, orm, ppo, rcrl, "
            "reinforce, rest_em, rft, rloo, sample, sft, sorm, steps, vineppo.",
        ),
        (
            "train",
            "modle=tiny",
            "modle must be a known key. Did you mean model? The keys and groups are algorithm, "
            "dataset, dry_run, evaluation, init, model, prompt, reward, runtime, sampler, scale, "
            "seed, tracking.",
        ),
        (
            "evaluate",
            "predictoins=x.jsonl",
            "predictoins must be a known key. Did you mean predictions? The keys and groups are "
            "dataset, evaluation, format, grader, model, predictions, prompt, reward_model, run, "
            "runtime, sampler, scale, seed.",
        ),
        (
            "train",
            "model.pth=x",
            "model.pth must be a known key. Did you mean path? model has the keys compute_dtype, "
            "device, num_parameters, path, resources.",
        ),
        ("train", "init.sft.epohcs=3", "init.sft.epohcs must be a known key. Did you mean epochs?"),
        ("train", "runtime.zzz=3", "runtime.zzz must be a known key. runtime has the keys"),
        ("train", "seed", "Error parsing override 'seed' missing EQUAL"),
        ("train", "seed=zero", "seed must be a whole number, 0 or more; got seed=zero."),
        (
            "train",
            "algorithm.epochs=two",
            "algorithm.epochs must be a whole number; got algorithm.epochs=two.",
        ),
        ("train", "algorithm.temperature=0", "algorithm.temperature=0.0 must be above 0"),
        ("train", "runtime.outputs=${nothing}", "Interpolation key 'nothing' not found"),
        # What the data and the model say.
        (
            "train",
            "dataset.max_new_tokens=500",
            "dataset.max_new_tokens=500 must fit after the prompt; got",
        ),
        ("evaluate", "dataset.max_new_tokens=500", "dataset.max_new_tokens=500 must fit after"),
        ("train", "model.path=./modles/tiny", "model.path=./modles/tiny must be a folder or hub"),
        ("train", "model.path=no-such-folder", "model.path=no-such-folder must be a folder or hub"),
        ("evaluate", "model.path=no-such-folder", "model.path=no-such-folder must be a folder or"),
        ("train", "model.path=x.gguf", "model.path=x.gguf must be a file that exists."),
        ("train", "model.device=tpu", "model.device=tpu must be a device of this machine; got"),
        ("evaluate", "run=no-such-run", "run=no-such-run must be a run's folder, or a part of"),
        ("evaluate", "format=xls", "format must be one of table, csv, latex, markdown, json; got"),
        (
            "evaluate",
            "grader=exact",
            "grader=exact must be of predictions=FILE: the completions",
        ),
        ("evaluate", "reward_model=none", "reward_model=none must be a run's folder, or a"),
    ],
)
def test_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, override: str, message: str
):
    line = refusal(capfd, tmp_path / "outputs", name, override)
    assert line.startswith(message)


@pytest.mark.parametrize("key", ["value_layers", "trainable_layers"])
def test_more_layers_than_the_model_has(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, key: str
):
    line = refusal(capfd, tmp_path / "outputs", "train", "algorithm=ppo", f"algorithm.{key}=5")
    assert (
        line == f"algorithm.{key}=5 must be at most the model's number of layers; got 4. Lower it."
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.label_tokens=text"], "model must have a tokenizer that knows the dataset's "
         "words; got the label [BAD], which has some it doesn't."),
        (["algorithm.labels=[good,good]"], "algorithm.labels=['good', 'good'] must be two "
         "different texts or more, from the worst to the best, none of them blank."),
        (["algorithm.labels=null"], "algorithm.thresholds=[0.5] must be [] where a label is the "
         "return itself; got algorithm.labels=null. Pass algorithm.thresholds=[]."),
        (["algorithm.solution_ratio=0"], "algorithm.solution_ratio must be null (as it is), above "
         "0, or inf (positive ones alone); got 0.0."),
        (["algorithm.thresholds=half"], "algorithm.thresholds must be a list, as [8] is; got alg"),
        (["algorithm.lables=[a,b]"], "algorithm.lables must be a known key. Did you mean labels?"),
        (["reward=orm", "reward.run=none"], "reward.run=none must be a finished run of algorithm="),
    ],
)  # fmt: skip
def test_rcrl(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], message: str
):
    line = refusal(capfd, tmp_path / "outputs", "train", "algorithm=rcrl", *overrides)
    assert line.startswith(message)


def test_unknown_words(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """The embedded models know the words of stories only."""
    rows = [json.dumps({"question": f"Quantum {i}?", "answer": "#### 3"}) for i in range(300)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    overrides = ["dataset=gsm8k", f"dataset.path={tmp_path}"]
    for name in ENTRY_POINTS:
        line = refusal(capfd, tmp_path / "outputs", name, *overrides, "dataset.num_exemplars=0")
        assert line.startswith(
            "model must have a tokenizer that knows the dataset's words; got gsm8k"
        )
        assert "Pass model=smollm2-135m" in line


def test_data_that_is_not_there_or_malformed(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    overrides = ["dataset=gsm8k", f"dataset.path={tmp_path}"]
    line = refusal(capfd, tmp_path / "outputs", "train", *overrides)
    assert line == (
        f"dataset.path={tmp_path} must be a folder that holds train.jsonl; there is no "
        f"{tmp_path}/train.jsonl. Pass the right folder, or dataset.path=null to read from the "
        "Hugging Face hub."
    )
    (tmp_path / "train.jsonl").write_text("{}\n")
    line = refusal(capfd, tmp_path / "outputs", "train", *overrides)
    assert line == f"{tmp_path}/train.jsonl:1: answer must be there and not empty."


def test_models_that_are_none(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = copied_model(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    damaged = copied_model(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    architecture = {"model_type": "gpt2", "n_embd": 128, "n_layer": 4, "n_head": 4}
    expected = {
        empty: f"model.path={empty} must be a folder or hub id of a causal language model with",
        bare: f"model.path={bare} must be a folder or hub id of a causal language model with",
        damaged: f"model.path={damaged} must be a folder or hub id of a causal language model",
        copied_model(tmp_path / "deeper", num_hidden_layers=5): "must hold the weights of its "
        "config.json; model.layers.4.input_layernorm.weight is missing.",
        copied_model(tmp_path / "wider", intermediate_size=64): "must hold the weights of its "
        "config.json; some are of another shape.",
        copied_model(tmp_path / "gpt2", **architecture): "must hold the weights of its config.json",
    }
    for folder, message in expected.items():
        small = [f"model.path={folder}", "dataset.train_size=1", "dataset.test_size=1"]
        line = refusal(capfd, tmp_path / "outputs", "train", *small)
        assert message in line
    line = refusal(capfd, tmp_path / "outputs", "evaluate", f"model.path={bare}")
    assert expected[bare] in line


def test_a_reward_model_needs_samples_to_choose_among(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    overrides = ["reward_model=a", "evaluation.num_samples_per_prompt=1"]
    line = refusal(capfd, tmp_path / "outputs", "evaluate", *overrides)
    assert line == (
        "reward_model=a must have samples to choose among; got "
        "evaluation.num_samples_per_prompt=1. Raise it."
    )


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "outputs"


def in_proc(_: Path) -> Path:
    return Path("/proc/reasonrl")  # nobody may create anything there


@pytest.mark.parametrize(
    ("name", "make_outputs"),
    [
        ("train", in_proc),
        ("evaluate", in_proc),
        ("evaluate", below_a_file),
        ("train", below_a_file),
    ],
)
def test_outputs_that_cannot_be_written(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, make_outputs
):
    outputs = make_outputs(tmp_path)
    small = ["dataset.test_size=1", "evaluation.num_samples_per_prompt=1", "runtime.threads=1"]
    lines = refused(capfd, outputs, name, *small).splitlines()  # the plan, then the error
    assert lines[-1].startswith(f"error: path={outputs}/")
    assert "must be writable; got " in lines[-1]
    assert lines[-1].endswith("Make it writable or choose another folder.")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train.py", "modle=tiny"], "modle must be a known key. Did you mean model?"),
        (["train.py", "seed=zero"], "seed must be a whole number, 0 or more; got seed=zero."),
        (["evaluate.py", "run=none"], "run=none must be a run's folder, or a part of exactly one"),
        (
            [
                "train.py",
                "-m",
                "reward=sparse,function",
                "reward.path=x.py:score",
            ],
            "reward.path must be a known key. It is a key of reward=function. reward has the keys",
        ),
        (["train.py", "-m", "seed=0,1", "model=tiny,huge"], "model=huge must be one of 13b, 7b,"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_real_process(tmp_path: Path, command: list[str], message: str):
    outputs = tmp_path / "outputs"
    process = subprocess.run(
        [sys.executable, *command, f"runtime.outputs={outputs}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert only_line(process.stderr).startswith(message)
    assert process.stdout == ""
    assert not (outputs / "runs").exists()  # Hydra makes a sweep's own folder before it composes
