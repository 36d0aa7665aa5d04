"""Atomic writes: whole or not at all, under kill -9, a full disk and concurrent writers."""

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reasonrl.util.atomic import atomic_folder, remove_folder, write_bytes, write_json, write_text
from reasonrl.util.errors import UserError

DEAD_PID = 2**22 + 1  # above the largest pid Linux gives out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_hold_what_was_written_and_nothing_else_is_left(tmp_path):
    write_bytes(tmp_path / "new" / "b", b"\x00\xff")
    write_text(tmp_path / "new" / "t", "größer\n")
    write_text(tmp_path / "new" / "t", "ja\n")
    assert (tmp_path / "new" / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "new" / "t").read_bytes() == b"ja\n"
    assert names(tmp_path / "new") == ["b", "t"]


def test_json_floats_round_trip_and_numpy_becomes_plain(tmp_path):
    value = {
        "tenth": 0.1,
        "least": 5e-324,
        "worst": -math.inf,
        "single": np.float32(0.1),  # 0.100000001490116... as a double
        "count": np.int64(3),
        "row": np.array([1, 2]),
        "big": 2**100,
    }
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "tenth": 0.1,
        "least": 5e-324,
        "worst": -math.inf,
        "single": 0.10000000149011612,
        "count": 3,
        "row": [1, 2],
        "big": 1267650600228229401496703205376,
    }
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        write_json(tmp_path / "x.json", {"bad": object()})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_unwritable_disk_is_one_clear_line_and_the_old_file_stays(tmp_path, monkeypatch, code):
    path = tmp_path / "status.json"
    write_text(path, "old")

    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError) as caught:
        write_text(path, "new")
    message = str(caught.value)
    assert message.startswith(f"path={path} must be writable; got {os.strerror(code)}. ")
    assert ("Free some space" in message) == (code == errno.ENOSPC)
    assert "\n" not in message
    assert path.read_text() == "old"
    assert names(tmp_path) == ["status.json"]


def test_a_file_changes_by_renaming_a_complete_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")
    seen = []
    replace = os.replace

    def look(new, old):
        seen.append((Path(new).read_text(), Path(old).read_text()))
        replace(new, old)

    monkeypatch.setattr(os, "replace", look)
    write_text(path, "new")
    assert seen == [("new", "old")]
    assert path.read_text() == "new"


def test_a_file_where_a_folder_should_be_is_a_user_error(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="must be writable"):
        write_text(tmp_path / "file" / "x", "")
    with pytest.raises(UserError, match="must be writable"), atomic_folder(tmp_path / "file" / "x"):
        pass


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "parent" / "step"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"
    assert names(target.parent) == ["step"]


def test_every_file_and_folder_is_flushed_before_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def path_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(path_of(fd)), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    with atomic_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("1")
        temporary = folder.name
    assert events == ["a", temporary, "rename", tmp_path.name]


def test_a_failing_block_leaves_the_old_folder(tmp_path):
    target = tmp_path / "step"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "a").write_text("new")
        _ = 1 / 0
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["step"]


def test_a_folder_is_replaced_whole_and_removed_whole(tmp_path):
    target = tmp_path / "step"
    for name in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / name).write_text("")
    assert names(target) == ["new"]
    remove_folder(target)
    assert names(tmp_path) == []


def test_leftovers_of_dead_writers_are_cleared_and_living_ones_spared(tmp_path):
    def leave(host: str, pid: int, digit: str, age_hours: float) -> str:
        path = tmp_path / f".x~{host}~{pid}~{digit * 32}.tmp"
        path.mkdir() if digit in "ac" else path.write_text("")
        stamp = time.time() - 3600 * age_hours
        os.utime(path, (stamp, stamp))
        return path.name

    here = socket.gethostname()
    leave(here, DEAD_PID, "a", 0)
    leave(here, DEAD_PID, "b", 0)
    leave("elsewhere", 1, "c", 25)
    spared = [leave(here, os.getpid(), "d", 48), leave("elsewhere", 1, "e", 23)]
    (tmp_path / ".x.tmp").write_text("somebody else's")
    write_text(tmp_path / "y", "")
    assert names(tmp_path) == sorted([*spared, ".x.tmp", "y"])


def test_kill_9_leaves_an_old_or_a_new_file_never_a_part(tmp_path):
    script = (
        "import sys, itertools; from pathlib import Path\n"
        "from reasonrl.util.atomic import write_text\n"
        "for i in itertools.count():\n"
        "    write_text(Path(sys.argv[1]), str(i % 10) * 300_000)\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "file"
    for delay in (0.0, 0.003, 0.011):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        content = path.read_text()
        assert len(content) == 300_000
        assert len(set(content)) == 1
    write_text(path, "last")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_folder_are_for_those_for_whom_the_folder_is(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "policy") as folder:
            os.close(os.open(folder / "of-its-owner", os.O_CREAT | os.O_WRONLY, 0o600))
            (folder / "of-all").touch()
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "policy").iterdir()}
    assert modes == {"of-its-owner": mode, "of-all": mode}
