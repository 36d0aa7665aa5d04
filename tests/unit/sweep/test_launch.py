"""From points to a submission: all is planned and checked before anything is written."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

from reasonrl.config.schema import TrainConfig
from reasonrl.config.tracking.wandb import WandbConfig
from reasonrl.pipeline.estimate import Range
from reasonrl.pipeline.plan import Plan
from reasonrl.runs.folder import GAIN, RunFolder, Status, read_config, read_status, write_status
from reasonrl.sweep import launch as launching
from reasonrl.sweep import local
from reasonrl.sweep.launch import Point, launch, plan_table, point, sweep_name
from reasonrl.sweep.manifest import Member, Submission, Submitted, Sweep
from reasonrl.sweep.options import LauncherOptions, cluster_of, job_options, read_options
from reasonrl.sweep.slurm import SlurmError
from reasonrl.sweep.submit import _job_name, submit
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT, SMALL
from tests.helpers.fake_sweep import made_up_sweep


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """As the launcher gets a point, with what Hydra adds."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        outputs = f"runtime.outputs={tmp_path / 'outputs'}"
        local = "hydra.launcher.cluster=local"
        yield lambda *overrides: compose(
            "train", [outputs, local, *SMALL, *overrides], return_hydra_config=True
        )


@pytest.fixture
def points(composed: Callable[..., DictConfig]) -> Callable[..., list[Point]]:
    """Points from ``"algorithm=ei seed=0"``."""
    return lambda *texts: [point(text.split(), composed(*text.split())) for text in texts]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sweep, Mapping[str, TrainConfig]]]:
    """What would be, instead of its submission; all of its runs are then done."""
    calls = []

    def record(sweep: Sweep, configs: Mapping[str, TrainConfig]) -> list[str]:
        calls.append((sweep, configs))
        for member in sweep.runs:
            run = sweep.run(member.name)
            run.path.mkdir(parents=True, exist_ok=True)
            write_status(run, Status.here("done", 1))
            if run.protocol is not None:
                write_json(run.evaluated(run.protocol) / GAIN, {"estimates": {}})
        return [member.name for member in sweep.runs]

    monkeypatch.setattr(launching, "submit", record)
    monkeypatch.setattr("reasonrl.pipeline.comparison.show_comparison", lambda _: None)
    return calls


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    monkeypatch.setattr(launching, "console", console)
    return console


def short(name: str) -> str:
    return name.rpartition("-")[0]


def test_what_runs_need_comes_first_and_once(
    points: Callable[..., list[Point]], submitted: list[Any]
) -> None:
    launch(points("algorithm=ei seed=0", "algorithm=orm seed=0", "algorithm=sft seed=0"))
    ((sweep, configs),) = submitted
    assert [(short(m.name), m.overrides, [*map(short, m.needs)]) for m in sweep.runs] == [
        ("sft-tiny-pretrained-stories-s0", ["algorithm=sft", "seed=0"], []),
        (
            "ei-sparse-tiny-sft-stories-s0",
            ["algorithm=ei", "seed=0"],
            ["sft-tiny-pretrained-stories-s0"],
        ),
        ("sample-tiny-ei-stories-s0", None, ["ei-sparse-tiny-sft-stories-s0"]),
        (
            "orm-tiny-ei-stories-s0",
            ["algorithm=orm", "seed=0"],
            ["ei-sparse-tiny-sft-stories-s0", "sample-tiny-ei-stories-s0"],
        ),
    ]
    assert [*configs] == [member.name for member in sweep.runs]
    assert {name: config.algorithm.name for name, config in configs.items()} == {
        name: name.partition("-")[0] for name in configs
    }
    assert Path(sweep.code, "reasonrl", "sweep", "worker.py").exists()
    assert sweep.at_once == 1


def test_the_plan_says_which_finished_runs_are_to_be_evaluated(
    points: Callable[..., list[Point]], submitted: list[Any], shown: Console
) -> None:
    launch(points("algorithm=sft"))
    launch(points("algorithm=sft"), dry_run=True)
    assert " done " in shown.export_text()
    launch(points("algorithm=sft evaluation.num_samples_per_prompt=5"), dry_run=True)
    assert "to be evaluated" in shown.export_text()
    assert len(submitted) == 1


def test_points_that_are_the_same_run_are_one(
    points: Callable[..., list[Point]], submitted: list[Any]
) -> None:
    launch(points("algorithm=sft seed=0 runtime.threads=1", "algorithm=sft seed=0"))
    assert [len(sweep.runs) for sweep, _ in submitted] == [1]


@pytest.mark.slow
def test_wandb_groups_by_sweep_and_runs_side_by_side_share_the_cores(
    points: Callable[..., list[Point]],
    submitted: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reasonrl.runs.process.usable_cores", lambda: 7)
    some = "tracking=wandb algorithm=sft runtime.threads=null hydra.launcher.processes=3"
    own = "tracking.group=mine runtime.threads=5"
    launch(points(f"{some} seed=0", f"{some} seed=1 {own}", f"{some} seed=2 runtime.processes=2"))
    ((sweep, configs),) = submitted
    first, second, third = configs.values()
    assert isinstance(first.tracking, WandbConfig)
    assert isinstance(second.tracking, WandbConfig)
    assert (first.tracking.group, first.runtime.threads) == (sweep.name, 2)  # 7 // 3
    assert third.runtime.threads == 1  # 7 // (3 * 2)
    assert (second.tracking.group, second.runtime.threads) == ("mine", 5)


def test_a_dry_run_shows_all_and_writes_nothing(
    points: Callable[..., list[Point]], submitted: list[Any], shown: Console, tmp_path: Path
) -> None:
    some = points("algorithm=ei seed=0", "algorithm=ei seed=1")
    launch(some, dry_run=True)
    assert submitted == []
    assert list(tmp_path.iterdir()) == []
    text = shown.export_text()
    assert "seed-0-1-" in text
    assert ": 4 runs" in text
    assert text.count("ei-sparse-tiny-sft-stories-s1") == 1
    assert text.count("sft-tiny-pretrained-stories-s1") == 2  # itself, and as a need
    assert text.count("1 CPU, 4 GB, 2 h") == 4  # of conf/model/tiny.yaml
    assert "nodes" not in text


def test_a_plan_says_what_jobs_of_several_nodes_ask_for(
    points: Callable[..., list[Point]], shown: Console
) -> None:
    asks = "hydra.launcher.nodes=2 hydra.launcher.gpus_per_node=4 hydra.launcher.mem_gb=0"
    launch(points(f"algorithm=sft {asks}"), dry_run=True)
    assert "2 nodes of 4 GPU, 1 CPU, 2 h" in " ".join(shown.export_text().split())


def test_a_plan_says_how_long_it_takes_here(
    points: Callable[..., list[Point]], shown: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def seconds(runs: Iterable[Plan], at_once: int) -> Range:
        timed.extend(runs)
        return Range(600.0 / at_once, 1200.0 / at_once)

    monkeypatch.setattr("reasonrl.pipeline.estimate.seconds", seconds)
    several = "hydra.launcher.processes=2"
    some = points(f"algorithm=ei {several}", f"algorithm=ppo {several}")
    launch(some, dry_run=True)
    assert "about 5 to 10 minutes on this machine" in shown.export_text()
    assert sorted(one.run.path.name.partition("-")[0] for one in timed) == ["ei", "ppo", "sft"]
    monkeypatch.setattr("reasonrl.sweep.launch.cluster_of", lambda _: "slurm")
    launch(some, dry_run=True)
    assert "on this machine" not in shown.export_text()


@pytest.mark.usefixtures("_without_weights")
def test_a_plan_says_what_each_model_needs_of_a_gpu(
    points: Callable[..., list[Point]], shown: Console
) -> None:
    shown.width = 200
    models = ("model=7b", "model=7b algorithm=ppo algorithm.trainable=all", "model=13b")
    launch(points(*(f"{one} dataset=stories" for one in models)), dry_run=True)
    text = shown.export_text()
    # GB, first of SFT, Expert Iteration and PPO on four GPUs, then of the first two on eight.
    learning = re.findall("while it learns +(.+)", text)
    assert [line.split() for line in learning] == [["35.0", "35.0", "42.1"], ["37.3", "37.3"]]
    assert "7b, 6,738,415,616 parameters: GB in each of 4 GPUs; 74 of 80 may be used" in text
    assert "13b, 13,015,864,320 parameters: GB in each of 8 GPUs; 74 of 80 may be used" in text
    assert text.count("isn't ready on this machine") == 2
    assert "7b, 13b: scale paper (the paper's, recalled;" in text
    assert re.search("stories, evaluated with K=.*; by the command line: .*dataset=stories", text)
    assert text.count("learning rate 2e-05 → 2e-07") == 2  # of SFT and Expert Iteration, once each


@pytest.mark.usefixtures("_without_weights")
def test_a_sweep_with_a_run_that_fits_no_gpu_is_refused(points: Callable[..., list[Point]]) -> None:
    some = points("model=tiny", "model=7b model.resources.gpus=1 dataset=stories")
    with pytest.raises(UserError, match=r"have room for .*: 116 GB on each; got 80 GB"):
        launch(some, dry_run=True)


@pytest.fixture
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrl.pipeline.planner.find_folder", lambda *_: None)


def test_of_many_runs_the_first_are_shown(
    points: Callable[..., list[Point]], shown: Console
) -> None:
    (one,) = points("algorithm=sft")
    many = [replace(one, config=replace(one.config, seed=seed)) for seed in range(1002)]
    launch(many, dry_run=True)
    text = shown.export_text()
    assert text.count("sft-tiny") == 40
    assert "… and 962 more" in text  # 1002 - 40


def test_a_plan_is_a_line_for_each_run_with_a_cell_for_what_it_needs_and_asks_for(
    tmp_path: Path,
) -> None:
    asked = {"nodes": 1, "gpus_per_node": 2, "cpus_per_task": 4, "mem_gb": 60, "timeout_min": 90}
    names = ["sft-tiny-s0-1a2b3c4d", *(f"ei-tiny-s{seed}-1a2b3c4d" for seed in range(41))]
    members = [Member(names[0], None, [], {**asked, "gpus_per_node": 0})]
    members += [Member(name, [], names[:1], {**asked, "nodes": 3}) for name in names[1:]]
    sweep = replace(made_up_sweep(tmp_path, names)[0], runs=members)
    write_status(sweep.run(names[0]), Status.here("done", 1))
    title, head, *lines = plan_table(sweep, asks=True).plain.splitlines()
    assert title == "ei-1a2b3c4d: 42 runs"
    assert [re.split("  +", line) for line in (head, *lines[:2])] == [
        ["run", "state", "needs", "asks for"],
        ["sft-tiny-s0", "done", "4 CPU, 60 GB, 1.5 h"],
        ["ei-tiny-s0", "to do", "sft-tiny-s0", "3 nodes of 2 GPU, 4 CPU, 60 GB, 1.5 h"],
    ]
    assert len(lines) == 41
    assert lines[-1] == "… and 2 more"  # 42 - 40
    assert "asks for" not in plan_table(sweep, asks=False).plain


def test_one_wrong_point_is_named_and_nothing_is_submitted(
    points: Callable[..., list[Point]], submitted: list[Any], tmp_path: Path
) -> None:
    some = points("algorithm=sft seed=0", "seed=1 algorithm=sft dataset.num_exemplars=8")
    with pytest.raises(UserError) as error:
        launch(some)
    assert "dataset.num_exemplars=8 must leave problems" in str(error.value)
    named = "In the run of seed=1 algorithm=sft dataset.num_exemplars=8; nothing is submitted."
    assert str(error.value).endswith(named)
    assert submitted == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=-1", "seed must be a whole number.* In the run of seed=-1; nothing is submitted"),
        ("hydra.launcher.processes=0", r"launcher\.processes must be 1 or more; got 0\. In the"),
        ("+hydra.launcher.memory=3", r"launcher\.memory must be a known key; .* mem_gb, "),
    ],
)
def test_what_is_wrong_with_a_point_names_it(
    points: Callable[..., list[Point]], text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        points(text)


def test_a_sweep_of_one_that_is_wrong(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"got seed=-1\. Nothing is submitted\.$"):
        point((), composed("seed=-1"))


def test_all_runs_have_one_folder_of_outputs(points: Callable[..., list[Point]]) -> None:
    with pytest.raises(UserError, match=r"runtime\.outputs must be the same.*/a, .*/b\. Give"):
        launch(points("algorithm=sft runtime.outputs=a", "algorithm=sft runtime.outputs=b"))


def test_a_folder_that_parts_paths_is_refused(
    points: Callable[..., list[Point]], tmp_path: Path, submitted: list[Any]
) -> None:
    with pytest.raises(UserError, match=r"runtime\.outputs must have no : in its path where a swe"):
        launch(points(f"runtime.outputs='{tmp_path}/10:15:00'"))
    assert submitted == []
    assert not (tmp_path / "10:15:00").exists()


def test_outputs_are_the_same_however_they_are_named(
    points: Callable[..., list[Point]],
    submitted: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = points("algorithm=sft seed=0 runtime.outputs=o", f"runtime.outputs={tmp_path}/o/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "_plans", lambda points, _: some_plans(points))
    launch(some)
    assert submitted[0][0].path.parent == tmp_path / "o" / "sweeps"


def some_plans(points: list[Point]) -> list[Any]:
    """Without reading models, which lie where the tests' working directory was."""
    from reasonrl.pipeline.plan import Plan
    from reasonrl.runs.folder import run_folder

    return [
        Plan(p.config, run_folder(p.config), {}, "", False, None, [], [], [], []) for p in points
    ]


def test_what_is_undone_in_the_end_is_an_error(
    points: Callable[..., list[Point]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "submit", lambda *_: [])
    with pytest.raises(UserError, match=r"2 of its 2 runs aren't.*give the same command again"):
        launch(points("algorithm=sft seed=0", "algorithm=sft seed=1"))


def test_one_sweep_is_made_in_one_place(points: Callable[..., list[Point]]) -> None:
    some = points("hydra.launcher.processes=1 seed=0", "hydra.launcher.processes=2 seed=1")
    with pytest.raises(UserError, match=r"hydra.launcher.processes must be the same .* got 1, 2"):
        launch(some)


def test_where_slurm_does_not_answer_the_error_says_what_else_there_is(
    points: Callable[..., list[Point]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: object) -> None:
        raise SlurmError("squeue must answer; got nothing.")

    monkeypatch.setattr(launching, "submit", submit)
    with pytest.raises(UserError, match=r"got nothing. hydra.launcher.cluster=local makes"):
        launch(points("algorithm=sft"))


def test_a_cluster_that_does_not_answer_is_noticed_before_anything_is_planned(
    points: Callable[..., list[Point]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def queue() -> None:
        raise SlurmError("squeue must answer; got nothing.")

    monkeypatch.setattr(launching, "cluster_of", lambda _: "slurm")
    monkeypatch.setattr("reasonrl.sweep.slurm.queue", queue)
    monkeypatch.setattr(launching, "_plans", lambda *_: pytest.fail("it has planned"))
    with pytest.raises(UserError, match=r"got nothing. hydra.launcher.cluster=local makes"):
        launch(points("algorithm=sft"))


def test_a_sweep_was_begun_when_its_command_was_first_given(
    points: Callable[..., list[Point]], submitted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for time in ("2026-01-02T03:04:05+00:00", "2026-01-03T03:04:05+00:00"):
        monkeypatch.setattr(launching, "now", lambda time=time: time)
        launch(points("algorithm=sft"))
        submitted[-1][0].write()
    assert [sweep.created for sweep, _ in submitted] == ["2026-01-02T03:04:05+00:00"] * 2


def test_jobs_have_telling_names(tmp_path: Path) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["ei-tiny-s0-1", "ei-tiny-s1-2", "ppo-tiny-s0-3"])
    assert _job_name(sweep, batch) == "ei-ppo-1a2b3c4d"
    assert _job_name(sweep, replace(batch, runs=["sft-tiny-s0-4"])) == "sft-tiny-s0-4"


LONG = "x" * 300


@pytest.mark.parametrize(
    ("overrides", "readable"),
    [
        ([["seed=0"]], "ppo-"),
        ([[]], "ppo-"),
        ([["seed=0", "model=7b"], ["seed=1", "model=7b"]], "seed-0-1-"),
        ([["algorithm=ei", "model=7b"], ["algorithm=ppo", "model=13b"]], "ei-ppo_7b-13b-"),
        ([["algorithm.epochs=0.5"], ["algorithm.epochs=2"]], "epochs-0.5-2-"),
        ([[f"seed={n}"] for n in range(7)], "7-seeds-"),
        ([["init.run=/a b/c"], ["init.run='d=\"é\"'"]], "a-b-c-d-"),
        ([[f"model.path={LONG}"], ["model.path=y"]], "x" * 60 + "-"),
        ([["+a=../.."], ["+a=$(b)"]], "b-"),
    ],
)
def test_a_sweep_is_named_by_what_differs(overrides: list[list[str]], readable: str) -> None:
    config: Any = SimpleNamespace(algorithm=SimpleNamespace(name="ppo"))
    some = [Point(tuple(one), config, LauncherOptions(), "small") for one in overrides]
    name = sweep_name(some, ["run-b", "run-a", "run-b"])
    # printf 'run-a\nrun-b' | sha256sum
    assert name == f"{readable}8b3f5519"


def test_jobs_ask_for_what_their_model_needs_unless_they_are_told(
    points: Callable[..., list[Point]],
) -> None:
    (one,) = points("algorithm=sft hydra.launcher.mem_gb=9 hydra.launcher.gpus_per_node=0")
    asked = job_options(one.options, one.config)
    assert asked == {
        "nodes": 1,
        "gpus_per_node": 0,
        "cpus_per_task": 1,
        "mem_gb": 9,
        "timeout_min": 120,
        "partition": None,
        "account": None,
        "qos": None,
        "constraint": None,
        "exclude": None,
        "setup": [],
        "signal_delay_s": 120,
        "max_requeues": 100,
        "additional_parameters": {},
    }


def test_the_cluster_is_slurm_where_there_is_an_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster_of(LauncherOptions()) == "local"
    with pytest.raises(UserError, match="must have sbatch on the PATH; got none"):
        cluster_of(LauncherOptions(cluster="slurm"))
    (tmp_path / "sbatch").write_text("")
    (tmp_path / "sbatch").chmod(0o755)
    assert cluster_of(LauncherOptions()) == cluster_of(LauncherOptions(cluster="slurm")) == "slurm"
    assert cluster_of(LauncherOptions(cluster="local")) == "local"
    with pytest.raises(UserError, match="must be one of auto, slurm, local; got foo"):
        cluster_of(LauncherOptions(cluster="foo"))


@pytest.mark.parametrize(
    ("processes", "nodes", "gpus", "fits"),
    [(4, 2, 2, True), (4, 2, 0, True), ("auto", 3, 1, True), (3, 2, 0, False), (4, 1, 2, False)],
)
def test_processes_are_shared_out_to_nodes_and_have_a_gpu_each(
    points: Callable[..., list[Point]], processes: int | str, nodes: int, gpus: int, fits: bool
) -> None:
    asks = f"hydra.launcher.nodes={nodes} hydra.launcher.gpus_per_node={gpus}"
    (one,) = points(f"algorithm=sft runtime.processes={processes} {asks}")
    if fits:
        assert job_options(one.options, one.config)["nodes"] == nodes
        return
    got = f"got {nodes} nodes of {gpus} GPUs. Pass runtime.processes=auto"
    with pytest.raises(UserError, match=got):
        launch([one], dry_run=True)


@pytest.mark.parametrize(
    "name", ["comment", "open-mode", "open_mode", "dependency", "output", "nodes", "ntasks"]
)
def test_what_the_launcher_needs_is_its_own(name: str) -> None:
    read_options({"additional_parameters": {"mail-type": "FAIL", "requeue": False}})
    with pytest.raises(UserError, match=f"must leave {name} to the launcher"):
        read_options({"additional_parameters": {name: "x"}})


def test_a_sweep_of_nothing() -> None:
    with pytest.raises(UserError, match=r"must have runs; got none\. Is a range or a glob empty"):
        launch([])


@pytest.mark.parametrize(
    ("name", "least"),
    [
        *[(name, 1) for name in ("nodes", "cpus_per_task", "timeout_min")],
        *[(name, 1) for name in ("processes", "array_parallelism")],
        *[(name, 0) for name in ("gpus_per_node", "mem_gb", "signal_delay_s", "max_requeues")],
    ],
)
def test_numbers_have_a_least_value(name: str, least: int) -> None:
    read_options({name: least})
    with pytest.raises(UserError, match=f"{name} must be {least} or more; got {least - 1}"):
        read_options({name: least - 1})


# Of runs as processes of this machine; with real ones in tests/integration/test_local_sweep.py.


@pytest.fixture
def two(tmp_path: Path, configure: Callable[..., TrainConfig]) -> tuple[Sweep, Any]:
    """Runs a, and b that needs it."""
    sweep = Sweep(
        path=tmp_path / "outputs" / "sweeps" / "two",
        command=[],
        folder=str(tmp_path),
        created="2026-01-02T03:04:05+00:00",
        cluster="local",
        code=str(ROOT),
        at_once=1,
        runs=[Member("a", []), Member("b", [], needs=["a"])],
    )
    return sweep, dict.fromkeys("ab", configure("algorithm=sft"))


@pytest.mark.parametrize(
    ("cluster", "job", "where"),
    [("local", "17_0", "as job 17_0 of Slurm"), ("slurm", None, "as of a sweep on one machine")],
)
def test_what_a_run_needs_must_not_wait_elsewhere(
    two: tuple[Sweep, Any], monkeypatch: pytest.MonkeyPatch, cluster: Any, job: str, where: str
) -> None:
    sweep, configs = replace(two[0], cluster=cluster), two[1]
    findings = [
        SimpleNamespace(member=sweep.runs[0], verdict="queued", job=job),
        SimpleNamespace(member=sweep.runs[1], verdict="to do", job=None),
    ]
    monkeypatch.setattr("reasonrl.sweep.submit.look", lambda _: findings)
    with pytest.raises(
        UserError, match=f"run=b must be made where .*; a waits for its turn {where}"
    ):
        submit(sweep, configs)
    assert not sweep.run("b").config.exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of runs that were begun; each only dies."""
    names: list[str] = []

    class Dead:
        returncode = -11

        def poll(self) -> int:
            return self.returncode

    def start(*given: object) -> Dead:
        names.append(str(given[-1]))
        return Dead()

    monkeypatch.setattr(local, "_start", start)
    polls = iter(range(100))  # rather than for ever
    # Another test's threads may sleep meanwhile: only this module's own clock stands still.
    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=lambda _: next(polls)))
    return names


def test_what_died_before_it_began_has_failed_and_what_needs_it_is_not_begun(
    two: tuple[Sweep, Any], started: list[str]
) -> None:
    sweep, configs = two
    time = "2026-01-02T03:04:05+00:00"
    write_status(sweep.run("a"), Status("preempted", 4, "other", 7, time, time))
    assert submit(sweep, configs) == ["a", "b"]
    assert started == ["a"]
    status = read_status(sweep.run("a"))
    assert status is not None
    assert (status.state, status.attempt) == ("failed", 5)
    assert status.error == "exit status -11 before it began"
    assert not local.is_alive(sweep.run("a"))
    assert not local.is_alive(sweep.run("b"))  # though its launcher is
    assert Submission.read(sweep.run("b")) is None
    assert read_config(sweep.run("b")) == configs["b"]


def test_a_launcher_is_alive_if_its_process_is_as_old(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a")
    batch = Submitted(
        path=tmp_path / "batch",
        cluster="local",
        runs=["a"],
        code="",
        submitted="2100-01-01T00:00:00+00:00",
        host=Status.here("queued", 0).host,
        pid=os.getpid(),
        options={},
    )
    batch.write()
    run.path.mkdir(parents=True)
    Submission(str(batch.path), 0).write(run)
    assert local.is_alive(run)
    replace(batch, submitted="2020-01-01T00:00:00+00:00").write()  # now another has its number
    assert not local.is_alive(run)
    replace(batch, pid=2**22 + 1).write()  # more than there can be
    assert not local.is_alive(run)
