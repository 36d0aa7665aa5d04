"""metrics.jsonl: exact lines, crash recovery, rewinding."""

import errno
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from reasonrl.runs import metrics_log
from reasonrl.runs.metrics_log import MetricsLog, read_metrics, reproducible
from reasonrl.util.errors import UserError


def test_one_json_object_a_line(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(1, {"sft/loss": 0.1, "ei/kept": 3, "eval/split": "test"})
        line = path.read_bytes()
        assert line.startswith(b'{"step": 1, "sft/loss": 0.1, "ei/kept": 3, "eval/split": "test",')
        assert line.endswith(b"}\n")
        log.log(2, {"rollout/mean": np.float32(0.5), "rollout/count": np.int64(7)})
    assert read_metrics(path) == [
        {"step": 1, "sft/loss": 0.1, "ei/kept": 3, "eval/split": "test"},
        {"step": 2, "rollout/mean": 0.5, "rollout/count": 7},
    ]


def test_nan_and_infinity_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(0, {"sft/a": math.nan, "sft/b": -math.inf, "sft/c": np.float32("inf")})
    assert b'{"step": 0, "sft/a": null, "sft/b": null, "sft/c": null,' in path.read_bytes()


def test_a_line_says_when_it_was_written_and_what_the_run_has_taken(tmp_path, monkeypatch):
    clock = iter([100.0, 101.5, 900.0, 902.0])  # an opening and a line, twice
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(metrics_log.time, "time", lambda: 1_700_000_000.25)
    path = tmp_path / "metrics.jsonl"
    for step, gigabytes in ((1, 2), (2, 3)):
        with MetricsLog(path, peak_memory=lambda: gigabytes * 1e9) as log:  # noqa: B023
            log.log(step, {"pg/kl": 0.5, "time/tokens_per_second": 7.0})
    first = {"step": 1, "pg/kl": 0.5, "time/tokens_per_second": 7.0}
    now = {"time/now": 1_700_000_000.25}
    assert read_metrics(path, stamps=True) == [
        first | now | {"time/elapsed": 1.5, "memory/peak_gb": 2.0},
        first | now | {"step": 2, "time/elapsed": 3.5, "memory/peak_gb": 3.0},
    ]
    assert read_metrics(path) == [first, first | {"step": 2}]
    assert reproducible(path) == [{"step": 1, "pg/kl": 0.5}, {"step": 2, "pg/kl": 0.5}]


def test_the_peak_of_memory_is_that_of_this_process():
    assert 10e6 < metrics_log.peak_memory() < 1e12  # no Python takes less, nor a kilobyte more


@pytest.mark.parametrize("name", ["loss", "loss/sft", "sft"])
def test_a_name_needs_a_known_prefix(tmp_path, name):
    with MetricsLog(tmp_path / "m") as log, pytest.raises(ValueError, match="must start with one"):
        log.log(0, {name: 1.0})
    assert (tmp_path / "m").read_bytes() == b""


@pytest.mark.parametrize("torn", [b'{"step": 2, "sf', b'{"step": 2}'])
def test_a_half_written_last_line_is_not_read_and_cut_off_on_opening(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    assert read_metrics(path) == [{"step": 1}]
    with MetricsLog(path) as log:
        assert log.position() == 1
        log.log(2, {"sft/loss": 1})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "sft/loss": 1}]


def test_rewinding_to_a_checkpoint_doubles_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        assert log.position() == 0
        log.log(1, {"sft/loss": 3})
        position = log.position()
        log.log(2, {"sft/loss": 2})
        log.log(3, {"sft/loss": 1})
    with MetricsLog(path) as log:
        log.rewind(position)
        log.log(2, {"sft/loss": 2})
    assert read_metrics(path) == [{"step": 1, "sft/loss": 3}, {"step": 2, "sft/loss": 2}]
    with MetricsLog(path) as log:
        log.rewind(0)
    assert read_metrics(path) == []


@pytest.mark.parametrize("position", [2, 13, -1])
def test_a_position_of_another_file_is_refused(tmp_path, position):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    with MetricsLog(path) as log, pytest.raises(UserError, match=f"position={position} must be"):
        log.rewind(position)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_no_file_reads_as_no_lines_and_a_bad_line_is_named(tmp_path):
    assert read_metrics(tmp_path / "none") == []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 must be a JSON object; got b'not json'"):
        read_metrics(path)


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with MetricsLog(tmp_path / "m") as log:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match="must be writable; got No space left on device"):
            log.position()
    with MetricsLog(tmp_path / "m") as log:
        log._file.close()
        log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        with pytest.raises(UserError, match="must be writable; got No space left on device"):
            log.log(1, {"sft/loss": 1})


def test_kill_9_loses_no_line_already_logged(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from reasonrl.runs.metrics_log import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\n"
        "for step in range(1_000_000):\n"
        "    log.log(step, {'sft/loss': 0.5})\n"
        "    print(step, flush=True)\n"
    )
    path = tmp_path / "metrics.jsonl"
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    announced = [int(writer.stdout.readline()) for _ in range(200)]
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    records = read_metrics(path)
    assert len(records) >= len(announced) == 200
    assert [record["step"] for record in records] == list(range(len(records)))
