"""Identity, status, ownership and provenance of runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reasonrl.config.identity import identity
from reasonrl.runs import folder as runs
from reasonrl.runs.folder import RunFolder, Status, is_done, read_status, running, write_status
from reasonrl.runs.preemption import Preempted
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError

HERE = socket.gethostname()

OWNER = """
import sys, time
from pathlib import Path
from reasonrl.runs.folder import RunFolder, running
with running(RunFolder(Path(sys.argv[1]))) as todo:
    print("owns", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "ei-sparse-tiny-s0-1a2b3c4d")


@pytest.fixture
def owner(run):
    """Another process that owns the run until a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "owns\n"
    yield process
    process.kill()
    process.communicate()


def test_identity_is_the_hash_of_canonical_json():
    # sha256sum of {"algorithm":"ei","lr":0.1,"reward":{"gamma":1.0,"name":"sparse"},"seed":0}
    expected = "d86c5f34"
    sparse = {"name": "sparse", "gamma": 1.0}
    assert identity({"seed": 0, "lr": 0.1, "algorithm": "ei", "reward": sparse}) == expected
    assert identity({"algorithm": "ei", "reward": sparse, "lr": 0.1, "seed": 0}) == expected
    for other in ({"seed": 1}, {"seed": 0.0}, {"lr": 0.1 + 2**-56}, {"reward": {}}):
        changed = {"seed": 0, "lr": 0.1, "algorithm": "ei", "reward": sparse} | other
        assert identity(changed) != expected
    with pytest.raises(TypeError):
        identity({"path": Path("x")})


def test_paths():
    run = RunFolder(Path("r"))
    assert run.config == Path("r/.hydra/config.yaml")
    assert run.status == Path("r/status.json")
    assert run.provenance == Path("r/provenance.json")
    assert run.metrics == Path("r/metrics.jsonl")
    assert run.rollouts == Path("r/rollouts")
    assert run.policy == Path("r/policy")
    assert run.result == Path("r/result.json")
    assert run.learning_curve == Path("r/learning_curve.png")
    assert run.evaluation == Path("r/evaluation")
    assert run.log == Path("r/train.log")


def test_status_file(run):
    status = Status("failed", 2, "node7", 41, "2025-01-02T03:04:05+00:00", "x", "out of memory")
    write_status(run, status)
    assert json.loads(run.status.read_text()) == {
        "state": "failed",
        "attempt": 2,
        "host": "node7",
        "pid": 41,
        "started": "2025-01-02T03:04:05+00:00",
        "heartbeat": "x",
        "error": "out of memory",
    }
    assert read_status(run) == status


@pytest.mark.parametrize(
    "content",
    [None, b"", b'{"state": "do', b"[]", b"{}", b"\xff", b"null", b'{"state": "done", "extra": 1}'],
)
def test_a_missing_or_damaged_status_is_none(run, content):
    if content is not None:
        run.path.mkdir(parents=True)
        run.status.write_bytes(content)
    assert read_status(run) is None
    assert not is_done(run)


def test_an_unknown_state_is_none(run):
    write_status(run, Status("finished", 1, "h", 1, "s", "b"))
    assert read_status(run) is None


def test_a_run_is_running_then_done_and_is_not_done_twice(run):
    with running(run) as todo:
        assert todo
        status = read_status(run)
        assert (status.state, status.attempt, status.error) == ("running", 1, None)
        assert (status.host, status.pid) == (HERE, os.getpid())
        assert not is_done(run)
    assert is_done(run)
    done = run.status.read_bytes()
    with running(run) as todo:
        assert not todo
    assert run.status.read_bytes() == done
    assert len(json.loads(run.provenance.read_text())["attempts"]) == 1


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (RuntimeError("out of\n  memory"), "failed", "RuntimeError: out of memory"),
        (UserError("lr=-1 must be positive."), "failed", "lr=-1 must be positive."),
        (KeyboardInterrupt(), "failed", "interrupted"),
        (SystemExit(4), "failed", "SystemExit: 4"),
        (Preempted(), "preempted", None),
    ],
)
def test_an_exception_is_recorded_and_raised_and_the_next_attempt_goes_on(run, error, state, text):
    with pytest.raises(type(error)) as caught, running(run):
        raise error
    assert caught.value is error
    status = read_status(run)
    assert (status.state, status.attempt, status.error) == (state, 1, text)
    with running(run) as todo:
        assert todo
        assert (read_status(run).state, read_status(run).error) == ("running", None)
    assert (read_status(run).state, read_status(run).attempt) == ("done", 2)


def test_a_full_disk_does_not_hide_the_first_error(run, monkeypatch, caplog):
    def refuse(*_):
        raise UserError("disk full")

    with pytest.raises(ZeroDivisionError), running(run):  # noqa: PT012
        monkeypatch.setattr(runs, "write_json", refuse)
        _ = 1 / 0
    assert "disk full" in caplog.text


def test_an_owned_run_is_refused_naming_the_owner(run, owner):
    with (
        pytest.raises(UserError, match=f"one process at a time; got host={HERE} pid={owner.pid}. "),
        running(run),
    ):
        pass
    assert read_status(run).pid == owner.pid


def test_waiting_says_for_whom_and_finds_the_work_done(run, owner, caplog, monkeypatch):
    monkeypatch.setattr(runs, "NOTICE_SECONDS", 0.1)
    caplog.set_level("INFO")
    threading.Timer(0.35, lambda: (owner.stdin.write("go\n"), owner.stdin.flush())).start()
    with running(run, wait=True, poll=0.02) as todo:
        assert not todo
    notice = f"waiting for {run.path}, held by host={HERE} pid={owner.pid}"
    assert caplog.messages.count(notice) >= 2
    assert read_status(run).pid == owner.pid


def test_kill_9_of_the_owner_frees_the_run(run, owner):
    threading.Timer(0.2, owner.send_signal, [signal.SIGKILL]).start()
    assert read_status(run).state == "running"
    with running(run, wait=True, poll=0.02) as todo:
        assert todo
        assert (read_status(run).attempt, read_status(run).pid) == (2, os.getpid())


def test_the_heart_beats_while_the_work_goes_on_and_then_stops(run, monkeypatch):
    clock = iter(f"t{i}" for i in range(1000))
    monkeypatch.setattr(runs, "now", lambda: next(clock))
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.01)
    with running(run):
        first = read_status(run)
        deadline = time.monotonic() + 5
        while read_status(run).heartbeat == first.heartbeat and time.monotonic() < deadline:
            time.sleep(0.01)
        later = read_status(run)
        assert later.heartbeat != first.heartbeat
        assert (later.started, later.state) == (first.started, "running")
    assert read_status(run).state == "done"
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_late_beat_does_not_overwrite_the_end(run, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.01)
    late = threading.Event()

    def slow_in_thread(path, value):
        if threading.current_thread() is not threading.main_thread():
            late.set()
            time.sleep(0.1)
        write_json(path, value)

    with running(run):
        monkeypatch.setattr(runs, "write_json", slow_in_thread)
        assert late.wait(5)
    time.sleep(0.15)
    assert is_done(run)


def test_a_missed_beat_does_not_stop_the_work(run, monkeypatch, caplog):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.01)
    failures = threading.Event()

    def fail_in_thread(path, value):
        if threading.current_thread() is not threading.main_thread():
            failures.set()
            raise UserError("disk full")
        write_json(path, value)

    with running(run):
        monkeypatch.setattr(runs, "write_json", fail_in_thread)
        assert failures.wait(5)
    assert is_done(run)
    assert "disk full" in caplog.text


def test_runs_imports_no_torch():
    modules = "reasonrl.runs.folder, reasonrl.runs.metrics_log"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
