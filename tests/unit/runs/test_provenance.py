import hashlib
import json
import socket
import subprocess
import sys

import pytest

from reasonrl.runs.provenance import (
    PACKAGES,
    SNAPSHOT,
    add_attempt,
    code_changes,
    code_version,
    complete_attempt,
    differences,
    hardware,
)


def test_provenance_has_an_entry_for_each_attempt(tmp_path, monkeypatch):
    file = tmp_path / "provenance.json"
    for command in (["train.py", "seed=0"], ["train.py", "seed=0", "resumed"]):
        monkeypatch.setattr(sys, "argv", command)
        add_attempt(file)
    first, second = json.loads(file.read_text())["attempts"]
    assert (first["command"], second["command"][-1]) == (["train.py", "seed=0"], "resumed")
    assert first["host"] == socket.gethostname()
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(first["packages"]) == set(PACKAGES)
    assert first["packages"]["torch"][0].isdigit()
    assert set(first) == {
        *("started", "command", "commit", "dirty", "diff_sha256", "python", "packages"),
        *("platform", "host", "cpu", "cpu_count"),
    }
    assert first["cpu"]  # wherever this is


def test_a_damaged_provenance_starts_over(tmp_path):
    file = tmp_path / "provenance.json"
    file.write_text("{")
    add_attempt(file)
    assert len(json.loads(file.read_text())["attempts"]) == 1


def test_what_an_attempt_uses_is_added_to_the_last_one(tmp_path):
    file = tmp_path / "provenance.json"
    add_attempt(file)
    add_attempt(file)
    complete_attempt(file, threads=2, gpu=None, processes=1)
    first, last = json.loads(file.read_text())["attempts"]
    assert set(last) - set(first) == {"threads", "gpu", "processes"}
    assert (last["threads"], last["gpu"], last["processes"]) == (2, None, 1)
    assert last["command"] == first["command"]


@pytest.mark.parametrize(
    ("attempts", "known"),
    [
        (
            [{"threads": 2, "gpu": None, "processes": 1, "cpu": "Xeon"}],
            {"threads": "2", "gpu": "none", "processes": "1", "cpu": "Xeon"},
        ),
        (
            [{"threads": 1, "gpu": "H200"}, {"threads": 8, "gpu": "H200"}, {"threads": 1}],
            {"threads": "1 and 8", "gpu": "H200"},
        ),
        ([{"host": "node1", "cpu_count": 8}], {}),  # of an older version
        ([], {}),
    ],
)
def test_the_hardware_of_a_run_is_that_of_all_its_attempts(tmp_path, attempts, known):
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps({"attempts": attempts}))
    assert hardware(file) == known


def test_the_hardware_of_a_run_that_says_nothing_is_unknown(tmp_path):
    file = tmp_path / "provenance.json"
    assert hardware(file) == {}
    for damaged in ("{", "[]", "{}"):
        file.write_text(damaged)
        assert hardware(file) == {}


def test_runs_on_equal_or_unknown_hardware_do_not_differ():
    same = {"threads": "1", "gpu": "none", "processes": "1", "cpu": "Xeon"}
    assert differences({}) == ""
    assert differences({"a": same, "b": dict(same), "c": {}, "d": {"gpu": "none"}}) == ""


def test_where_runs_differ_is_a_sentence():
    assert differences({"a": {"threads": "1"}, "b": {"threads": "2"}, "c": {"threads": "1"}}) == (
        "These runs were made with different threads (1: a, c; 2: b): the last bits, and so the "
        "samples, may differ for that alone."
    )
    many = {f"seed={seed}": {"gpu": "H200", "cpu": "Xeon"} for seed in range(4)}
    assert differences({**many, "seed=4": {"gpu": "none", "cpu": "EPYC"}, "old": {}}) == (
        "These runs were made with different GPU (H200: 4 runs; none: seed=4), CPU (Xeon: 4 runs; "
        "EPYC: seed=4): the last bits, and so the samples, may differ for that alone."
    )


def test_code_version_of_a_repository(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", "-C", tmp_path, *author, *arguments], check=True)

    nothing = {"commit": None, "dirty": None, "diff_sha256": None}
    package = tmp_path / "package"
    package.mkdir()
    code = package / "__init__.py"
    code.write_text("a = 1\n")
    assert code_version(package) == nothing
    git("init", "--quiet")
    assert code_version(package) == nothing  # another project's repository
    git("add", "package")
    git("commit", "--quiet", "-m", "first")
    commit = (tmp_path / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert code_version(package) == {"commit": commit, "dirty": False, "diff_sha256": None}
    code.write_text("a = 2\n")
    # The index line names the blobs: printf 'a = 1\n' | git hash-object --stdin, then 'a = 2\n'.
    diff = (
        "diff --git a/package/__init__.py b/package/__init__.py\n"
        "index 1337a530cbc1bd7d20aee2d80f1f174a9182417d"
        "..e7cabca986b0365ccfa4624eed67117c1b9b5f0c 100644\n"
        "--- a/package/__init__.py\n+++ b/package/__init__.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n"
    )
    assert code_version(package) == {
        "commit": commit,
        "dirty": True,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest(),
    }


def test_without_git_the_code_version_is_null(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version()["commit"] is None


def test_a_copy_of_the_code_says_what_it_is_a_copy_of(tmp_path):
    copy = tmp_path / "reasonrl"
    copy.mkdir()
    version = {"commit": "0123abc", "dirty": True, "diff_sha256": "ff"}
    (tmp_path / SNAPSHOT).write_text(json.dumps(version))
    assert code_version(copy) == version
    assert code_changes(copy) is None
