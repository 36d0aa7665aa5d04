"""What there is to know of the runs of a sweep, joined from their folders, Slurm and logs."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from reasonrl.runs.folder import Status, write_status
from reasonrl.sweep import slurm
from reasonrl.sweep.manifest import Member, Submission, Sweep
from reasonrl.sweep.slurm import Ended, SlurmError, SlurmJob, parse_accounting
from reasonrl.sweep.status import doomed, look
from reasonrl.util.atomic import write_json
from tests.helpers.configs import ROOT
from tests.helpers.fake_sweep import made_up_sweep
from tests.helpers.slurm_logs import BEGIN, OOM, SCANCEL, SEGFAULT, STOPPED, SUBMITTED, own


def test_accounts_are_read() -> None:
    text = (
        "17_0|COMPLETED|0:0|None\n17_1|CANCELLED by 1000|0:15|None\n17_2|OUT_OF_MEMORY|0:125|None\n"
        "17_3|FAILED|4:0|NonZeroExitCode\n17_4|RUNNING|0:0|None\n17_[5-9%4]|PENDING|0:0|Priority\n"
    )
    assert parse_accounting(text) == {
        "17_0": Ended("COMPLETED", "None", 0),
        "17_1": Ended("CANCELLED", "None", 15),
        "17_2": Ended("OUT_OF_MEMORY", "None", 125),
        "17_3": Ended("FAILED", "NonZeroExitCode", 1024),  # 4 * 256
    }


def verdicts(sweep: Sweep) -> dict[str, str]:
    return {finding.member.name: finding.verdict for finding in look(sweep)}


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)


def test_what_slurm_said_outlasts_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a", "b"])
    write_status(sweep.run("a"), own("running"))
    write_status(sweep.run("b"), own("done"))
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "accounting", lambda _: {})
    monkeypatch.setattr(slurm, "queue", list)
    end, elsewhere = Ended("NODE_FAIL", "NodeDown", 0), Path("/another/batch")
    monkeypatch.setattr(slurm, "ended", lambda: {(elsewhere, "17_0"): end})  # the same id, reused
    assert verdicts(sweep) == {"a": "crashed", "b": "done"}
    monkeypatch.setattr(slurm, "ended", lambda: {(batch.path, "17_0"): end})
    assert verdicts(sweep) == {"a": "node failure", "b": "done"}
    monkeypatch.setattr(slurm, "ended", dict)
    assert verdicts(sweep) == {"a": "node failure", "b": "done"}
    # Once it is in the queue again, that is past.
    alive = SlurmJob("17_0", "17", 0, "PENDING", "BeginTime", None, batch.path)
    monkeypatch.setattr(slurm, "queue", lambda: [alive])
    assert verdicts(sweep)["a"] == "queued"


@pytest.mark.usefixtures("no_slurm")
def test_a_batch_whose_launcher_died_is_known_by_its_logs(tmp_path: Path) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a", "b"])
    replace(batch, job=None).write()
    (batch.path / "21_1_0_log.out").write_text(SEGFAULT)
    assert verdicts(sweep) == {"a": "to do", "b": "crashed"}
    assert look(sweep)[1].job == "21_1"


@pytest.mark.usefixtures("no_slurm")
def test_also_if_it_is_of_one_run(tmp_path: Path) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    replace(batch, job=None).write()
    (batch.path / "21_0_log.out").write_text(OOM)
    assert verdicts(sweep) == {"a": "out of memory"}
    assert look(sweep)[0].job == "21"


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[SlurmJob]:
    """What is in Slurm's queue; nothing has ended."""
    jobs: list[SlurmJob] = []
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "accounting", lambda _: {})
    monkeypatch.setattr(slurm, "ended", dict)
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    return jobs


def test_runs_of_the_same_names_in_other_outputs_are_others(
    tmp_path: Path, queued: list[SlurmJob]
) -> None:
    sweep, _ = made_up_sweep(tmp_path / "one", ["a"])
    other, batch = made_up_sweep(tmp_path / "two", ["a"])
    queued.append(SlurmJob("17", "17", 0, "PENDING", "Priority", None, batch.path))
    assert verdicts(sweep) == {"a": "cancelled"}
    assert verdicts(other) == {"a": "queued"}


def test_slurm_is_not_asked_about_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> list[SlurmJob]:
        raise SlurmError("squeue must answer; got nothing.")

    sweep, _ = made_up_sweep(tmp_path, ["a", "b"])
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queue", silent)
    write_status(sweep.run("a"), own("done"))
    with pytest.raises(SlurmError):
        look(sweep)
    write_status(sweep.run("b"), own("done"))
    assert verdicts(sweep) == {"a": "done", "b": "done"}


def test_a_run_that_is_done_by_another_protocol_is_still_to_be_evaluated(
    tmp_path: Path, queued: list[SlurmJob]
) -> None:
    made, batch = made_up_sweep(tmp_path, ["a"])
    write_status(made.run("a"), own("done"))
    batch.log(0).write_text(BEGIN + SEGFAULT)  # whatever its job printed, it was done
    sweep = replace(made, runs=[Member("a", [], protocol="test-k96-t0.7")])
    assert (verdicts(made), verdicts(sweep)) == ({"a": "done"}, {"a": "to do"})

    later = replace(batch, path=batch.path.with_name("0002"), submitted="2099-01-01T00:00:00+00:00")
    later.write()
    Submission(str(later.path), 0).write(sweep.run("a"))
    queued.append(SlurmJob("17", "17", 0, "PENDING", "Priority", None, later.path))
    assert verdicts(sweep) == {"a": "queued"}
    queued[0] = replace(queued[0], state="RUNNING")
    assert verdicts(sweep) == {"a": "running"}

    queued.clear()
    later.log(0).write_text(BEGIN + SEGFAULT)
    assert verdicts(sweep) == {"a": "crashed"}
    write_json(sweep.run("a").evaluated("test-k96-t0.7") / "gain.json", {})
    assert verdicts(sweep) == {"a": "done"}


def test_a_job_that_will_never_find_its_orders_is_not_alive(
    tmp_path: Path, queued: list[SlurmJob]
) -> None:
    """submitit writes them after sbatch; the launcher died between the two."""
    sweep, batch = made_up_sweep(tmp_path, ["a", "b"])
    replace(batch, job=None).write()
    queued += [SlurmJob(f"21_{k}", "21", k, "RUNNING", "None", 60, batch.path) for k in range(2)]
    (batch.path / "21_1_submitted.pkl").write_text("")
    assert verdicts(sweep) == {"a": "to do", "b": "running"}
    assert doomed(sweep.outputs) == ["21_0"]
    replace(batch, job="21").write()
    assert doomed(sweep.outputs) == []


@pytest.mark.parametrize(
    ("held", "verdict", "why"),
    [
        ("launch failed requeued held", "node failure", "its job could not be launched"),
        ("launch_failed_requeued_held", "node failure", "its job could not be launched"),
        ("JobHoldMaxRequeue", "node failure", "its job could not be launched"),
        ("JobHeldUser", "queued", "held: scontrol release 17 lets it begin"),
        ("JobHeldAdmin", "queued", "held: scontrol release 17 lets it begin"),
        ("Priority", "queued", ""),
    ],
)
def test_a_job_that_slurm_holds(
    tmp_path: Path, queued: list[SlurmJob], held: str, verdict: str, why: str
) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    queued.append(SlurmJob("17", "17", 0, "PENDING", held, None, batch.path))
    (finding,) = look(sweep)
    assert finding.verdict == verdict
    assert finding.reason.startswith(why)


def test_a_run_whose_heart_does_not_beat_may_hang(tmp_path: Path, queued: list[SlurmJob]) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    queued.append(SlurmJob("17", "17", 0, "RUNNING", "None", 60, batch.path))
    assert look(sweep)[0].reason == ""  # it loads
    now = datetime.now(UTC)
    for seconds, reason in ((55, ""), (130, "no sign of life for 2 min")):
        beat = (now - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        write_status(sweep.run("a"), Status("running", 1, "node1", 1, beat, beat))
        (finding,) = look(sweep)
        assert (finding.verdict, finding.reason) == ("running", reason)


def test_a_run_made_by_hand_has_no_job(tmp_path: Path, queued: list[SlurmJob]) -> None:
    assert not queued
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    batch.log(0).write_text(SCANCEL)
    write_status(sweep.run("a"), Status.here("running", 2))
    with FileLock(sweep.run("a").path / ".lock"):
        (finding,) = look(sweep)
    assert (finding.verdict, finding.reason) == ("running", "outside of this sweep's jobs")
    assert finding.job is None
    (finding,) = look(sweep)
    assert (finding.verdict, finding.job) == ("cancelled", "17")


@pytest.mark.usefixtures("no_slurm")
def test_progress_and_metric_come_from_the_end_of_files(tmp_path: Path) -> None:
    sweep, _ = made_up_sweep(tmp_path, ["a", "b", "c"])
    sweep.run("a").metrics.write_text(
        '{"step": 0, "eval/validation_maj@1": 0.25}\n' + '{"step": 1499, "ei/loss": 1e-2}\n' * 9
    )
    sweep.run("b").metrics.write_text('{"step": 1, "ei/loss": 5e-1}\n{"step": 2, "ei/lo')
    a, b, c = look(sweep)
    assert (a.progress, a.metric) == ("step 1,499", "validation 0.250")
    assert (b.progress, b.metric) == ("step 2", "loss 0.500")
    assert (c.progress, c.metric) == ("", "")


def test_on_this_machine_a_run_lives_as_its_process_does(tmp_path: Path) -> None:
    sweep, _ = made_up_sweep(tmp_path, ["a", "b"], cluster="local")
    code = (
        "import sys; from pathlib import Path\n"
        "from reasonrl.runs.folder import RunFolder, running\n"
        "with running(RunFolder(Path(sys.argv[1]))):\n    print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(sweep.run("a").path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert verdicts(sweep) == {"a": "running", "b": "to do"}
        process.kill()
    assert verdicts(sweep) == {"a": "crashed", "b": "to do"}


@pytest.mark.slow
def test_status_of_a_thousand_runs(tmp_path: Path) -> None:
    """A quarter each done, failed, dead and preempted; without the queue, which takes 0.02 s."""
    names = [f"ei-sparse-tiny-sft-stories-s{n}-{n:08x}" for n in range(1000)]
    sweep, batch = made_up_sweep(tmp_path, names)
    for task, name in enumerate(names):
        run = sweep.run(name)
        state = ("done", "failed", "running", "preempted")[task % 4]
        values = {"state": state, "attempt": 1, "host": "elsewhere", "pid": 1}
        run.status.write_text(
            json.dumps(values | {"started": SUBMITTED, "heartbeat": SUBMITTED, "error": None})
        )
        run.metrics.write_text('{"step": 1, "ei/loss": 0.5, "ei/grad_norm": 0.25}\n' * 1000)
        end = STOPPED if state == "preempted" else SEGFAULT
        batch.log(task).write_text(BEGIN + "a line of a log\n" * 2000 + end)
    # No sbatch on this PATH.
    command = [sys.executable, "-m", "reasonrl.sweep", "status", "--outputs", str(tmp_path)]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    print(f"status of 1,000 runs: {seconds:.2f} s")
    assert re.search("1000 runs: 250 done, 250 failed, 250 crashed, 250 cancelled", done.stdout)
    assert seconds < 10  # 0.4 of a machine that isn't busy with other things
    shutil.rmtree(tmp_path / "runs")


@pytest.mark.usefixtures("no_slurm")
def test_a_finished_run_says_what_it_came_to(tmp_path: Path) -> None:
    sweep, _ = made_up_sweep(tmp_path, ["a-1a2b3c4d"])
    (member,) = sweep.runs
    replace(sweep, runs=[replace(member, protocol="test-k4-t0.7")]).write()
    sweep = Sweep.read(sweep.path)
    run = sweep.run("a-1a2b3c4d")
    write_status(run, Status("done", 1, "elsewhere", 1, SUBMITTED, SUBMITTED))
    for file, value in (("after/metrics.json", 0.406), ("gain.json", 0.054)):
        write_json(
            run.evaluation / "test-k4-t0.7" / file, {"estimates": {"maj@1": {"value": value}}}
        )
    run.metrics.write_text('{"step": 1, "ei/loss": 0.033}\n')
    (finding,) = look(sweep)
    assert (finding.verdict, finding.metric) == ("done", "maj@1 40.6%, gain +5.4%")
