"""W&B against metrics.jsonl, read back with W&B's own reader and by a server that stands in for
its own: after kills and requeues, without the package, a login or a network."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from reasonrl.cli.dashboard import main
from reasonrl.config.identity import decisive, identity
from reasonrl.config.schema import TrainConfig
from reasonrl.report import wandb_mirror
from reasonrl.report.wandb_mirror import mirrored, wandb_id, without_home
from reasonrl.runs.folder import RunFolder, read_config, running
from reasonrl.runs.metrics_log import STAMPS, MetricsLog, read_metrics, without
from reasonrl.runs.preemption import Preempted
from reasonrl.util.atomic import write_json
from tests.helpers.fake_wandb import Server, serving
from tests.helpers.wandb_folder import history, logged, read_back, records_of

KEY = "0123456789abcdef" * 2 + "01234567"  # of the right form, and no one's
needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="the wandb package isn't installed"
)

# An attempt at a run of twenty steps with a checkpoint every five. It ends as its last argument
# says: "done", or killed behind the step of that number. Its losses are those of a machine whose
# sums differ in the last digits from one attempt to the next.
ATTEMPT = """
import json, os, signal, subprocess, sys
from pathlib import Path
from omegaconf import OmegaConf
from reasonrl.config.resolve import resolve
from reasonrl.runs.folder import RunFolder, read_status, running
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.report.wandb_mirror import mirrored

run, end = RunFolder(Path(sys.argv[1])), sys.argv[2]
config = resolve(OmegaConf.load(run.config))
checkpoint = run.path / "checkpoint.json"
with running(run), mirrored(run, config) as mirror:
    with MetricsLog(run.metrics, on_line=mirror.follow) as log:
        saved = {"step": 0, "position": 0}
        if checkpoint.exists():
            saved = json.loads(checkpoint.read_text())
        log.rewind(saved["position"])
        for step in range(saved["step"] + 1, 21):
            log.log(step, {"sft/loss": 1 / step + 1e-12 * read_status(run).attempt})
            if str(step) == os.environ.get("KILL_SERVICE_AT"):
                subprocess.run(["pkill", "-P", str(os.getpid()), "wandb-core"], check=True)
            if str(step) == end:
                os.kill(os.getpid(), signal.SIGKILL)
            if step % 5 == 0:
                log.log(step, {"eval/validation_maj@1": step / 20})
                checkpoint.write_text(json.dumps({"step": step, "position": log.position()}))
    mirror.complete({})
"""


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def tracked(tmp_path: Path, configure: Callable[..., TrainConfig]) -> Any:
    """A run's folder with its configuration, and that, for overrides."""

    def make(*overrides: str) -> tuple[RunFolder, TrainConfig]:
        config = configure("tracking=wandb", "tracking.timeout_seconds=5", *overrides)
        run = RunFolder(tmp_path / "runs" / "a-run")
        run.config.parent.mkdir(parents=True, exist_ok=True)
        run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        return run, config

    return make


def attempt(
    run: RunFolder, end: str, stdin: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ATTEMPT, str(run.path), end],
        env=os.environ | environment,
        stdin=stdin,
        stdout=subprocess.PIPE if stdin is None else stdin,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )


def log_a_line(run: RunFolder, config: TrainConfig, end: BaseException | None = None) -> None:
    with running(run), mirrored(run, config) as mirror:
        with MetricsLog(run.metrics, on_line=mirror.follow) as log:
            log.log(1, {"sft/loss": 0.5})
        mirror.complete({})
        if end is not None:
            raise end


@needs_wandb
def test_names_have_no_more_characters_than_w_and_b_takes(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, group = "m" * 70 + "-1234", "g" * 130
    run, config = tracked(f"model.name={model}", f"tracking.group={group}")
    run = RunFolder(run.path.with_name("r" * 200))
    write_json(run.provenance, {"attempts": [{"started": "2026-11-22T20:24:06+00:00"}]})
    given: dict[str, Any] = {}
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **options: given.update(options) or MagicMock())
    wandb_mirror._init(run, config, config.tracking, "offline")
    assert given["tags"] == sorted(
        ["m" * 31 + "…" + "m" * 27 + "-1234", "sft", "sparse", "stories"]
    )
    assert given["group"] == "g" * 63 + "…" + "g" * 64
    assert given["name"] == "r" * 63 + "…" + "r" * 64


@needs_wandb
def test_the_folder_is_the_runs_wherever_w_and_bs_service_began(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tracked()
    log_a_line(run, config)  # begins the service, if none has been
    monkeypatch.chdir(run.path.parent)
    other = RunFolder(Path("other"))
    log_a_line(other, config)
    assert history(other) == read_metrics(other.metrics, stamps=True)


@pytest.mark.slow
@needs_wandb
def test_killed_three_times_a_step_is_in_the_folder_once(tracked: Any) -> None:
    run, config = tracked()
    ids = set()
    for end in ("3", "8", "17"):  # back to nothing, to 5, to 15
        assert attempt(run, end).returncode == -signal.SIGKILL
        ids.add(wandb_id(run, config))
    assert attempt(run, "done").returncode == 0

    lines = read_metrics(run.metrics, stamps=True)
    assert [line["step"] for line in lines] == sorted([*range(1, 21), 5, 10, 15, 20])
    # Line 6 is of the second attempt's checkpoint, line 16 of the third's, line 21 of the fourth.
    losses = [line["sft/loss"] for line in lines if "sft/loss" in line]
    assert losses[5] == 1 / 6 + 3e-12
    assert losses[15] == 1 / 16 + 4e-12
    assert history(run) == lines
    assert ids == {wandb_id(run, config)}
    assert len(list(run.path.glob("wandb/*run-*"))) == 1


@pytest.mark.slow
@needs_wandb
def test_a_server_gets_no_line_twice(tracked: Any, server: Server) -> None:
    run, config = tracked("tracking.mode=online")
    environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    sent = []
    for end in ("3", "8", "17"):
        assert attempt(run, end, **environment).returncode == -signal.SIGKILL
        # What had reached the server when the process was killed is, here, all it logged.
        known = server.history[wandb_id(run, config)]
        known += [
            {"_step": number, **line}
            for number, line in enumerate(read_metrics(run.metrics, stamps=True))
            if number >= len(known)
        ]
        sent.append(len(known))
    assert sent == [3, 9, 20]  # 8 steps and a validation; 17 and three
    last = attempt(run, "done", **environment)
    assert last.returncode == 0
    assert "Tried to log" not in last.stderr  # W&B would drop it, but nothing is sent again

    (known,) = server.history.values()
    lines = read_metrics(run.metrics, stamps=True)
    assert [row["_step"] for row in known] == list(range(24))
    assert [row.keys() for row in logged(known)] == [line.keys() for line in lines]
    for row, line in zip(logged(known), lines, strict=True):
        known_line = without(STAMPS, line)  # stamped when it was logged for the first time
        assert without(STAMPS, row) == pytest.approx(known_line, abs=1e-11)


@needs_wandb
def test_what_w_and_b_is_told(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    settings = ("tracking.group=sweep-1", "tracking.tags=[mine]", "algorithm=ei", "reward=dense")
    run, config = tracked(*settings, "model.path=/home/jane/models/tiny")
    log_a_line(run, config)

    (told,) = records_of("run", read_back(run))
    assert told["run_id"].startswith(f"{identity(decisive(config))}-2")
    assert (told["run_group"], told["job_type"]) == ("sweep-1", "ei")
    assert (told["project"], told["display_name"]) == ("reasonrl", "a-run")
    assert sorted(told["tags"]) == ["dense", "mine", "sft", "stories", "tiny"]
    values = told["config"]["update"]
    assert values["algorithm"]["name"] == "ei"
    assert values["model"]["path"] == "~/models/tiny"
    assert values["attempt"] == 1
    assert values["provenance"]["packages"]["torch"]
    assert {"runtime", "tracking"}.isdisjoint(values)
    metrics = {
        record["name"]: record
        for record in records_of("metric", read_back(run))
        if "name" in record
    }
    assert metrics["step"]["options"]["hidden"]


@needs_wandb
def test_nothing_secret_is_written(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SECRET_OF_SOMETHING", "hunter2")
    argv = ["train.py", "hydra.launcher.setup=[export TOKEN=hunter2]"]
    monkeypatch.setattr(sys, "argv", argv)
    run, config = tracked("tracking.mode=offline")
    log_a_line(run, config)

    files = [file for file in run.path.rglob("wandb/**/*") if file.is_file()]
    assert {file.suffix for file in files} == {".wandb", ".log"}  # no code, no requirements
    assert not records_of("environment", read_back(run))  # command line and paths
    for file in files:
        content = file.read_bytes()
        for secret in (KEY, "hunter2", "/home/jane"):
            assert secret.encode() not in content, f"{secret} in {file}"


@pytest.mark.parametrize(
    ("home", "text", "shown"),
    [
        ("/home/jan", "/home/jan", "~"),
        ("/home/jan", "at /home/jan/models: 3", "at ~/models: 3"),
        ("/home/jan", "/home/janet/models /home/jan-2 /home/jan.old", None),
        ("/", "/data/models: 1/2", None),  # of containers
    ],
)
def test_home_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, home: str, text: str, shown: str | None
) -> None:
    monkeypatch.setenv("HOME", home)
    assert without_home({"a": [text, 7]}) == {"a": [text if shown is None else shown, 7]}


@pytest.mark.slow
@needs_wandb
def test_media_of_a_finished_run(tracked: Any) -> None:
    run, config = tracked()
    for picture in (run.learning_curve, run.evaluation / "validation" / "calibration.png"):
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(PNG)
    after = run.evaluation / "after"
    after.mkdir()
    rows = {
        "problem_id": [f"p{i}" for i in range(100)],
        "text": ["#### 7"] * 100,
        "answer": ["7"] * 100,
        "correct": [True] * 100,
        "score": [1.0] * 100,
    }
    pq.write_table(pa.table(rows), after / "greedy.parquet")
    estimate = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 8}
    (after / "metrics.json").write_text(json.dumps({"estimates": {"maj@1": estimate}}))
    gain = {"maj@1": {**estimate, "value": -0.125}}
    (run.evaluation / "gain.json").write_text(json.dumps({"estimates": gain}))
    with running(run), mirrored(run, config) as mirror:
        with MetricsLog(run.metrics, on_line=mirror.follow) as log:
            log.log(1, {"sft/loss": 0.5})
        mirror.complete({"p0": "How many?"})

    line, media = history(run)
    assert without(STAMPS, line) == {"step": 1, "sft/loss": 0.5}
    assert "step" not in media  # it would be there twice
    types = {name.removesuffix("._type"): kind for name, kind in media.items() if "._type" in name}
    assert types == {
        "learning_curve": "image-file",
        "calibration": "image-file",
        "completions": "table-file",
    }
    (folder,) = run.path.glob("wandb/offline-run-*")
    table = json.loads((folder / "files" / media["completions.path"]).read_text())
    assert table["columns"] == ["question", "problem_id", "text", "answer", "correct", "score"]
    assert table["data"][0] == ["How many?", "p0", "#### 7", "7", True, 1.0]
    assert len(table["data"]) == 64
    summary: dict[str, Any] = {}
    for record in records_of("summary", read_back(run)):
        summary |= record["update"]
    assert summary["eval/after_maj@1"] == 0.25
    assert summary["eval/gain_maj@1"] == -0.125
    assert not records_of("artifact", read_back(run))  # nothing outside the folder


# A pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f"
    "00010501012718e3660000000049454e44ae426082"
)


@needs_wandb
@pytest.mark.parametrize(
    ("end", "code"), [(None, 0), (Preempted("saved"), 1), (ValueError("no"), 1)]
)
def test_how_it_ended(tracked: Any, end: BaseException | None, code: int) -> None:
    run, config = tracked()
    with pytest.raises(type(end)) if end else nullcontext():
        log_a_line(run, config, end)
    records = read_back(run)
    assert records_of("exit", records)[-1].get("exit_code", 0) == code
    assert bool(records_of("preempting", records)) == isinstance(end, Preempted)


@needs_wandb
def test_auto_is_online_with_a_login(tracked: Any, server: Server) -> None:
    run, _ = tracked()
    environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    assert attempt(run, "done", **environment).returncode == 0
    (known,) = server.history.values()
    assert logged(known) == read_metrics(run.metrics, stamps=True)


@needs_wandb
def test_online_without_a_login_asks_nobody_and_goes_on_offline(tracked: Any) -> None:
    """On a terminal W&B itself would ask, and wait."""
    run, _ = tracked()
    ours, its = pty.openpty()
    try:
        process = attempt(run, "done", stdin=its, WANDB_MODE="online")
    finally:
        os.close(ours)
        os.close(its)
    assert process.returncode == 0, process.stderr
    assert "mode=online must have a login; got none. The run goes on offline." in process.stderr
    assert history(run) == read_metrics(run.metrics, stamps=True)


@needs_wandb
def test_a_key_that_can_be_none_is_no_login(tracked: Any) -> None:
    run, _ = tracked()
    process = attempt(run, "done", WANDB_API_KEY="short")
    assert process.returncode == 0, process.stderr
    assert "W&B: AuthenticationError" in process.stderr
    assert history(run) == read_metrics(run.metrics, stamps=True)


@needs_wandb
def test_a_machine_without_network_goes_on_offline(tracked: Any) -> None:
    run, _ = tracked("tracking.timeout_seconds=1")
    # Port 9 of this machine refuses.
    process = attempt(run, "done", WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9")
    assert process.returncode == 0, process.stderr
    assert "The run goes on offline." in process.stderr
    assert history(run) == read_metrics(run.metrics, stamps=True)


@pytest.mark.slow
@needs_wandb
def test_a_network_that_fails_on_the_way_stops_nothing(tracked: Any, server: Server) -> None:
    run, config = tracked("tracking.timeout_seconds=2", "tracking.mode=online")
    environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    assert attempt(run, "3", **environment).returncode == -signal.SIGKILL
    server.mute_after = "UpsertBucket"
    started = time.monotonic()
    process = attempt(run, "done", **environment)
    assert process.returncode == 0, process.stderr
    assert time.monotonic() - started < 60  # not for as long as the network is away
    assert json.loads(run.status.read_text())["state"] == "done"
    assert server.history[wandb_id(run, config)] == []
    assert history(run) == read_metrics(
        run.metrics, stamps=True
    )  # kept on the disk, for `wandb sync`


@needs_wandb
@pytest.mark.parametrize("method", ["define_metric", "log", "finish"])
def test_w_and_b_breaking_stops_nothing(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    import wandb

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    run, config = tracked(f"seed={len(method)}")  # W&B's service still has the broken ones, by id
    monkeypatch.setattr(wandb.Run, method, broken)
    log_a_line(run, config)
    assert "W&B: RuntimeError: broken. The run goes on without" in caplog.text
    assert read_metrics(run.metrics) == [{"step": 1, "sft/loss": 0.5}]
    assert json.loads(run.status.read_text())["state"] == "done"


@pytest.mark.slow
@needs_wandb
def test_its_service_killed_stops_nothing(tracked: Any) -> None:
    run, _ = tracked()
    process = attempt(run, "done", KILL_SERVICE_AT="8")
    assert process.returncode == 0, process.stderr
    assert "The run goes on without; its folder has all." in process.stderr
    assert json.loads(run.status.read_text())["state"] == "done"
    assert len(read_metrics(run.metrics)) == 24
    main(["mirror", str(run.path)])
    assert history(run) == read_metrics(run.metrics, stamps=True)


def test_without_the_package(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it then fails
    run, config = tracked()
    log_a_line(run, config)
    assert "W&B: pip install wandb to have it, or pass tracking=none." in caplog.text
    assert read_metrics(run.metrics) == [{"step": 1, "sft/loss": 0.5}]
    assert not (run.path / "wandb").exists()


@pytest.mark.parametrize("where", ["config", "environment"])
def test_switched_off(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    run, config = tracked("tracking.mode=disabled" if where == "config" else "tracking.mode=auto")
    with caplog.at_level(logging.INFO):
        log_a_line(run, config)
    assert "W&B" not in caplog.text
    assert not (run.path / "wandb").exists()


def test_a_run_from_before_there_was_tracking(tracked: Any) -> None:
    run, config = tracked()
    values = OmegaConf.load(run.config)
    del values["tracking"]
    run.config.write_text(OmegaConf.to_yaml(values))
    older = read_config(run)
    assert decisive(older) == decisive(config)
    log_a_line(run, older)
    assert not (run.path / "wandb").exists()


@needs_wandb
def test_it_can_be_made_again_from_the_folder(
    tracked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tracked("tracking.mode=disabled")
    assert main(["mirror", str(run.path)]) == 2
    assert "must be done; it isn't. Give its command again." in capsys.readouterr().err
    log_a_line(run, config)
    for _ in range(2):
        main(["mirror", str(run.path), "--project=p", "--group=sweep-1"])
        assert [without(STAMPS, line) for line in history(run)] == [{"step": 1, "sft/loss": 0.5}]
    (told,) = records_of("run", read_back(run))
    assert (told["project"], told["run_group"]) == ("p", "sweep-1")
    assert told["run_id"] == wandb_id(run, config)


@needs_wandb
def test_made_again_it_is_where_it_was(tracked: Any) -> None:
    own = ("tracking.mode=disabled", "tracking.project=mine", "tracking.group=sweep-2")
    run, config = tracked(*own, "tracking.tags=[late]")
    log_a_line(run, config)
    main(["mirror", str(run.path)])
    (told,) = records_of("run", read_back(run))
    assert (told["project"], told["run_group"]) == ("mine", "sweep-2")
    assert "late" in told["tags"]


@needs_wandb
def test_what_could_not_be_made_again_is_an_error(
    tracked: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, config = tracked("tracking.mode=disabled")
    log_a_line(run, config)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["mirror", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert "must be taken by W&B; it wasn't. See above, or unset WANDB_MODE." in error
    assert main(["mirror", "nowhere", "--outputs", str(tmp_path)]) == 2
    assert (
        "run=nowhere must be a run's folder, or a part of exactly one run's name"
        in capsys.readouterr().err
    )
