"""A sweep's page: what is read from the runs' folders, and that the file is whole and safe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonrl.cli import dashboard
from reasonrl.cli.dashboard import main, write_page
from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.dataset.gsm8k import GSM8KConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.problems import load_problems
from reasonrl.report import page as page_module
from reasonrl.report.page import page
from reasonrl.report.run_data import (
    Curve,
    RunData,
    read_curves,
    read_run,
)
from reasonrl.runs.folder import RunFolder, write_config
from reasonrl.sweep.manifest import Member, Sweep
from reasonrl.sweep.slurm import SlurmError
from tests.helpers.fake_sweep import make_run, make_sweep, write_estimates

EVIL = '<img src=x onerror="boom()"></script><script>boom()</script><!--'


def test_curves_are_what_was_logged(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 0, "pg/rollouts": 0, "eval/validation_maj@1": 0.1}\n'
        '{"step": 0, "pg/rollouts": 8, "rollout/correct": 0.30000000000000004}\n'
        '{"step": 1, "pg/approx_kl": null}\n'
        '{"step": 2, "pg/approx_kl": 5e-324, "time/host": "node1"}\n'
        '{"step": 2, "pg/approx'  # being written
    )
    assert read_curves(file) == {
        "pg/rollouts": Curve([0, 0], [0, 8], [0, 8]),
        "eval/validation_maj@1": Curve([0], [0], [0.1]),
        "rollout/correct": Curve([0], [8], [0.30000000000000004]),
        # Of optimizer steps on the eight rollouts before them.
        "pg/approx_kl": Curve([1, 2], [8, 8], [None, 5e-324]),
    }


def test_curves_without_rollouts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "sft/loss": 2.5}\n{"step": 2, "sft/loss": -Infinity}\n')
    assert read_curves(file) == {"sft/loss": Curve([1, 2], None, [2.5, None])}


def test_thinning_keeps_the_ends_the_extremes_and_gaps() -> None:
    values = [5.0, 1.0, 9.0, 3.0, None, 2.0, 8.0, 7.0, 0.0, 4.0]
    curve = Curve(list(range(10)), list(range(100, 110)), values)
    assert curve.thinned(10) is curve
    # Two stretches, 0 to 4 and 5 to 9: lowest 1 and 8, highest 2 and 6, the gap 4; the ends 0, 9.
    assert curve.thinned(9) == Curve(
        [0, 1, 2, 4, 6, 8, 9],
        [100, 101, 102, 104, 106, 108, 109],
        [5.0, 1.0, 9.0, None, 8.0, 0.0, 4.0],
    )
    gaps = Curve(list(range(4)), None, [None] * 4)
    assert gaps.thinned(3) == Curve([0, 3], None, [None, None])


def test_a_run_that_starts_from_anothers_policy(tmp_path: Path) -> None:
    make_run(
        tmp_path,
        "sft-sparse-tiny-pretrained-s0",
        evaluations={"after": {"maj@1": (0.25, 0.0, 0.75)}},
    )
    make_run(tmp_path, "orm-sparse-tiny-ei-s0", evaluations={"validation": {"auroc": (0.7, 0, 1)}})
    run = make_run(
        tmp_path,
        "rcrl-sparse-tiny-sft-s3",
        evaluations={"after": {"maj@1": (0.75, 0.25, 1.0)}},
        correct={"q2": False, "q1": True, "q3": True, "q4": True},
    )
    write_estimates(run.evaluation / "gain.json", {"maj@1": (0.5, 0.0, 1.0)})
    write_estimates(run.evaluation / "conditioning_gap.json", {"maj@1": (0.5, 0.25, float("nan"))})
    needs = ["orm-sparse-tiny-ei-s0", "sft-sparse-tiny-pretrained-s0"]
    data = read_run(run, ["algorithm=rcrl"], needs)

    assert (data.name, data.overrides) == ("rcrl-sparse-tiny-sft-s3", ["algorithm=rcrl"])
    assert (data.state, data.attempt, data.why) == ("done", 2, "")
    assert (data.algorithm, data.reward, data.model) == ("rcrl", "sparse", "tiny")
    assert (data.init, data.dataset, data.seed) == ("sft", "stories", 3)
    assert data.estimates == {
        "before/maj@1": {"value": 0.25, "low": 0.0, "high": 0.75, "n": 4},
        "after/maj@1": {"value": 0.75, "low": 0.25, "high": 1.0, "n": 4},
        "gain/maj@1": {"value": 0.5, "low": 0.0, "high": 1.0, "n": 4},
        "gap/maj@1": {"value": 0.5, "low": 0.25, "high": None, "n": 4},
    }
    assert data.correct == "1011"  # of q1 to q4
    assert data.completions[0] == {
        "of": "evaluation, greedy",
        "problem_id": "q2",
        "text": " 2+3=5\n#### 5",
        "answer": "5",
        "correct": False,
    }


def test_completions_stand_beside_their_questions(
    tmp_path: Path, configure: Callable[..., TrainConfig]
) -> None:
    config = configure()
    first = load_problems(config.dataset, "test")[0]
    run = make_run(
        *(tmp_path, "ei-dense-tiny-sft-s0"),
        evaluations={"after": {"maj@1": (0.5, 0.0, 1.0)}},
        correct={first.id: True, "unknown": False},
    )
    write_config(run, config)
    known, unknown = read_run(run, [], []).completions
    assert (known["question"], known["gold"]) == (first.question, first.answer)
    assert "question" not in unknown

    # Of the rollouts those that were sampled last, beside training questions.
    asked = load_problems(config.dataset, "train")[0]
    run.rollouts.mkdir()
    for number in (9, 10):
        row = {"problem_id": asked.id, "text": f"{number}", "answer": None, "correct": False}
        file = run.rollouts / f"round-{number}.parquet"
        pq.write_table(pa.Table.from_pylist([{**row, "score": 0.5}]), file)
    assert read_run(run, [], []).completions[2:] == [
        {
            "of": "rollouts, round 10",
            "problem_id": asked.id,
            "text": "10",
            "answer": None,
            "correct": False,
            "score": 0.5,
            "question": asked.question,
            "gold": asked.answer,
        }
    ]

    # Files that aren't here; and what a page doesn't go to the network for.
    common = {one.name: getattr(config.dataset, one.name) for one in fields(DatasetConfig)}
    for path in ("/elsewhere", None):
        files = common | {"name": "gsm8k", "path": path}
        gsm8k = GSM8KConfig(**files, annotations=False, hub="x/y")
        write_config(run, replace(config, dataset=gsm8k))
        data = read_run(run, [], [])
        assert (data.why, "question" in data.completions[0]) == ("", False)


def test_a_reward_only_where_it_is_asked_for(tmp_path: Path) -> None:
    names = ["ei-dense-tiny-sft-s0", "sft-dense-tiny-pretrained-s0", "orm-dense-tiny-ei-s0"]
    runs = [read_run(make_run(tmp_path, name), [], []) for name in names]
    assert [run.reward for run in runs] == ["dense", None, None]
    assert [run.makes_policy for run in runs] == [True, True, False]


def test_its_own_evaluation_before_comes_first(tmp_path: Path) -> None:
    make_run(tmp_path, "ei-sparse-tiny-sft-s0", evaluations={"after": {"maj@1": (0.9, 0, 1)}})
    run = make_run(
        tmp_path, "ppo-dense-tiny-run-s0", evaluations={"before": {"maj@1": (0.1, 0, 1)}}
    )
    estimates = read_run(run, [], ["ei-sparse-tiny-sft-s0"]).estimates
    assert estimates["before/maj@1"]["value"] == 0.1


def test_the_policy_of_an_earlier_run(tmp_path: Path) -> None:
    make_run(tmp_path, "ei-sparse-tiny-sft-s0", evaluations={"after": {"maj@1": (0.9, 0, 1)}})
    run = make_run(tmp_path, "ppo-dense-tiny-run-s0")
    config = run.config.read_text()
    earlier = "init: {name: run, run: /elsewhere/runs/ei-sparse-tiny-sft-s0}"
    run.config.write_text(config.replace("init: {name: run}", earlier))
    assert read_run(run, [], []).estimates["before/maj@1"]["value"] == 0.9


def test_runs_at_any_stage(tmp_path: Path) -> None:
    nothing = read_run(RunFolder(tmp_path / "runs" / "gone"), None, [])
    assert nothing == RunData("gone", None)
    assert nothing.state == "to do"

    waiting = read_run(make_run(tmp_path, "ppo-dense-tiny-sft-s0", state=None), ["seed=0"], [])
    assert (waiting.state, waiting.reward, waiting.curves) == ("to do", "dense", {})

    failed = make_run(
        tmp_path, "ppo-dense-tiny-sft-s1", state="failed", error="ValueError: no", lines=["{"]
    )
    data = read_run(failed, [], [])
    assert data.state == "failed"
    assert data.why.startswith("ValueError: no; its curves can't be read: ")

    died = read_run(failed, [], [], ("crashed", "killed (SIGKILL)"))  # after its own last word
    assert died.state == "crashed"
    assert died.why.startswith("killed (SIGKILL); its curves can't be read: ")


def test_what_cannot_be_read_takes_nothing_else_with_it(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        "ei-dense-tiny-sft-s0",
        lines=['{"step": 1, "ei/loss": 2.5}'],
        evaluations={"before": {"maj@1": (0.1, 0, 1)}, "after": {"maj@1": (0.9, 0, 1)}},
    )
    for folder in ("before", "after"):  # as early versions wrote it
        table = pa.table({"problem_id": ["q1"], "text": ["5"]})
        pq.write_table(table, run.evaluation / folder / "greedy.parquet")
    data = read_run(run, [], [])
    assert [part.partition(" can't")[0] for part in data.why.split("; ")] == [
        "its answers",
        "its completions",
    ]
    assert data.curves == {"ei/loss": Curve([1], None, [2.5])}
    assert set(data.estimates) == {"before/maj@1", "after/maj@1"}


@pytest.mark.parametrize("damage", ["algorithm: ei", "init: [run]", "- a", "seed: 2026-01-02", "{"])
def test_a_damaged_configuration_is_no_end(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path, "ei-dense-tiny-sft-s0", lines=['{"step": 1, "ei/loss": 2.5}'])
    run.config.write_text(damage)
    data = read_run(run, [], [])
    assert (data.state, data.why, data.seed) == ("done", "", None)
    assert data_of(make_page(data))["runs"][0]["curves"]["ei/loss"]["values"] == [2.5]


def data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script id="data" type="application/json">(.*)</script>', text)
    data: dict[str, Any] = json.loads(found, parse_constant=pytest.fail)
    return data


def make_page(*runs: RunData) -> str:
    times = ("2026-01-02T03:04:05+00:00", "2026-01-02T04:00:00+00:00")
    return page(EVIL, EVIL, *times, runs, EVIL)


def test_no_text_of_a_run_is_markup() -> None:
    completion = {"problem_id": EVIL, "text": EVIL, "answer": EVIL, "correct": False}
    run = RunData(EVIL, [EVIL], [EVIL], EVIL, why=EVIL, algorithm=EVIL, completions=[completion])
    text = make_page(run)
    assert text.count("</script") == 3  # the data's, Plotly's and the page's own
    assert EVIL not in text
    assert text.count("&lt;img src=x") == 2  # the title, twice
    data = data_of(text)
    assert (data["title"], data["command"], data["note"]) == (EVIL, EVIL, EVIL)
    assert data["runs"][0]["completions"] == [completion]


def test_the_browser_is_told_to_run_nothing_else() -> None:
    text = make_page(RunData("a", []))
    policy = re.search(r'content="(default-src[^"]*)"', text)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>\n", text, flags=re.DOTALL)
    assert len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert policy[1] == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'; "
        "style-src 'unsafe-inline'; img-src data: blob:"
    )


def test_values_to_the_last_bit_and_gaps_as_null() -> None:
    curve = Curve([1, 2, 3], None, [0.30000000000000004, None, 5e-324])
    data = data_of(make_page(RunData("a", [], algorithm="ei", curves={"ei/loss": curve})))
    assert data["points_per_line"] is None
    assert data["runs"][0]["curves"]["ei/loss"] == {
        "step": [1, 2, 3],
        "rollouts": None,
        "values": [0.30000000000000004, None, 5e-324],
    }
    assert data["runs"][0]["makes_policy"] is True


def test_only_too_many_points_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Curve(list(range(90)), None, [float(i) for i in range(90)])
    short = Curve([0], None, [7.0])
    runs = [RunData("a", [], curves={"ei/loss": long}), RunData("b", [], curves={"ei/loss": short})]
    monkeypatch.setattr(page_module, "MAX_POINTS", 91)
    assert data_of(make_page(*runs))["runs"][0]["curves"]["ei/loss"]["values"] == long.values

    monkeypatch.setattr(page_module, "MAX_POINTS", 90)  # of two lines: 45 each
    data = data_of(make_page(*runs))
    assert data["points_per_line"] == 45
    thinned = data["runs"][0]["curves"]["ei/loss"]["values"]
    assert len(thinned) == 2 * 14  # both ends of (45 - 2) // 3 stretches of a rising line
    assert (thinned[0], thinned[-1]) == (0.0, 89.0)
    assert data["runs"][1]["curves"]["ei/loss"]["values"] == [7.0]


def test_html_writes_the_page_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "ei-dense-tiny-sft-s0", lines=['{"step": 1, "ei/loss": 2.5}'])
    members = [Member("ei-dense-tiny-sft-s0", ["seed=0"]), Member("ppo-dense-tiny-sft-s0", None)]
    sweep = make_sweep(tmp_path, members)
    main(["html", str(sweep.path)])
    assert capsys.readouterr().out == f"{sweep.path / 'index.html'}\n"
    data = data_of((sweep.path / "index.html").read_text())
    assert (data["title"], data["created"]) == ("ei-ppo-1a2b3c4d", "2026-01-02T03:04:05+00:00")
    assert data["command"] == "python train.py -m algorithm=ei,ppo"
    assert data["note"] == ""
    assert [(run["name"], run["overrides"], run["state"]) for run in data["runs"]] == [
        ("ei-dense-tiny-sft-s0", ["seed=0"], "done"),
        ("ppo-dense-tiny-sft-s0", None, "to do"),
    ]
    main(["html", str(sweep.path), "--output", str(tmp_path / "elsewhere.html")])
    assert capsys.readouterr().out == f"{tmp_path / 'elsewhere.html'}\n"
    assert (tmp_path / "elsewhere.html").stat().st_size > 4_000_000  # with all it needs


def test_a_sweep_is_found_by_its_name_or_as_the_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, [])
    for named in ([sweep.name], []):
        assert main(["html", *named, "--outputs", str(sweep.outputs)]) == 0
        assert Path(capsys.readouterr().out.strip()).samefile(sweep.path / "index.html")


def test_html_of_no_sweep_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["html", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: sweep={tmp_path} must be a sweep's folder")


def written(sweep: Sweep) -> dict[str, Any]:
    return data_of(write_page(sweep.path, None).read_text())


def test_states_are_those_of_the_status_of_sweeps(tmp_path: Path) -> None:
    dead, blocked = "sft-sparse-tiny-pretrained-s0", "ei-dense-tiny-sft-s0"
    make_run(tmp_path, dead, state="running")  # months ago
    make_run(tmp_path, blocked, state=None)
    sweep = make_sweep(tmp_path, [Member(dead, None), Member(blocked, ["seed=0"], [dead])])
    assert [(run["state"], run["why"]) for run in written(sweep)["runs"]] == [
        ("crashed", "no trace: killed, or its node failed"),
        ("blocked", f"needs {dead}"),
    ]


def test_the_page_says_which_runs_were_made_on_other_hardware(tmp_path: Path) -> None:
    needed, one, two = (
        "sft-sparse-tiny-pretrained-s0",
        "ei-dense-tiny-sft-s0",
        "ei-dense-tiny-sft-s1",
    )
    for name, threads in ((needed, 4), (one, 1), (two, 8)):
        run = make_run(tmp_path, name)
        attempts = [{"threads": threads, "gpu": None, "processes": 1, "cpu": "Xeon"}]
        run.provenance.write_text(json.dumps({"attempts": attempts}))
    make_run(tmp_path, "ei-dense-tiny-sft-s2")  # an older one, which says nothing
    members = [Member(needed, None)]
    members += [Member(f"ei-dense-tiny-sft-s{seed}", [f"seed={seed}"]) for seed in range(3)]
    data = written(make_sweep(tmp_path, members))
    known = {"threads": "1", "gpu": "none", "processes": "1", "cpu": "Xeon"}
    assert data["runs"][1]["hardware"] == known
    assert data["runs"][3]["hardware"] == {}
    # What only others need is compared with nothing.
    assert data["differences"] == (
        "These runs were made with different threads (1: ei-dense-tiny-sft-s0; "
        "8: ei-dense-tiny-sft-s1): the last bits, and so the samples, may differ for that alone."
    )
    assert data_of(make_page(RunData("a", []), RunData("b", [])))["differences"] == ""


def test_where_slurm_does_not_answer_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: Sweep) -> None:
        raise SlurmError("squeue must answer; got nothing in 60 s. Try again later.")

    monkeypatch.setattr(dashboard, "look", silent)
    make_run(tmp_path, "ei-dense-tiny-sft-s0", state="running")
    data = written(make_sweep(tmp_path, [Member("ei-dense-tiny-sft-s0", ["seed=0"])]))
    assert [run["state"] for run in data["runs"]] == ["running"]
    assert data["note"] == (
        "States are the runs' own word, and may be out of date: "
        "squeue must answer; got nothing in 60 s. Try again later."
    )


def test_the_command_can_be_pasted_and_keeps_what_is_not_for_everybody(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [])
    secret = "[export HF_TOKEN=hf_secret]"
    command = [
        *("train.py", "-m", "hydra/launcher=slurm", f"hydra.launcher.setup={secret}"),
        *(f"+hydra.launcher.setup={secret}", f"hydra.job.env_set={secret}", "algorithm=ei,ppo"),
        *("dataset.stop=[a b]", "hydra.sweeper.params.seed=0,1"),
    ]
    replace(sweep, command=command).write()
    text = write_page(sweep.path, None).read_text()
    assert "hf_secret" not in text
    assert data_of(text)["command"] == (
        "python train.py -m algorithm=ei,ppo 'dataset.stop=[a b]' hydra.sweeper.params.seed=0,1"
    )


def test_from_inside_the_sweeps_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "ei-dense-tiny-sft-s0")
    sweep = make_sweep(tmp_path, [Member("ei-dense-tiny-sft-s0", ["seed=0"])])
    monkeypatch.chdir(sweep.path)
    data = data_of(write_page(Path("."), None).read_text())
    assert (data["title"], data["runs"][0]["state"]) == ("ei-ppo-1a2b3c4d", "done")
