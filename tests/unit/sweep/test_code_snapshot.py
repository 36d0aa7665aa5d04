"""The copy of the code that jobs run with."""

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from reasonrl.runs.provenance import PACKAGE, code_version
from reasonrl.sweep.code import snapshot

FILES = {"__init__.py": "", "a.py": "x = 1\n", "sub/b.py": "y = 2\n", "sub/page.html": "<p>\n"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "pack"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    cache = folder / "__pycache__" / "a.cpython-311.pyc"
    cache.parent.mkdir()
    cache.write_bytes(b"0")
    return folder


def files(folder: Path) -> dict[str, str]:
    found = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_text() for file in found}


def test_all_files_are_copied_but_caches(package: Path, tmp_path: Path) -> None:
    copy = snapshot(tmp_path / "outputs", package)
    version = files(copy).pop("code.json")
    assert files(copy / "pack") == FILES
    assert json.loads(version) == {"commit": None, "dirty": None, "diff_sha256": None}


def test_of_this_project_too(tmp_path: Path) -> None:
    copy = snapshot(tmp_path)
    here = {f.relative_to(PACKAGE) for f in PACKAGE.rglob("*") if "__pycache__" not in f.parts}
    there = {f.relative_to(copy / "reasonrl") for f in (copy / "reasonrl").rglob("*")}
    assert there == here
    assert Path("report/page.html") in there


def test_its_name_is_that_of_its_contents(package: Path, tmp_path: Path) -> None:
    first = snapshot(tmp_path / "outputs", package)
    assert first.parent == tmp_path / "outputs" / "code"
    assert len(first.name) == 8
    (package / "__pycache__" / "more.pyc").write_bytes(b"1")
    os.utime(package / "a.py", (0, 0))
    assert snapshot(tmp_path / "elsewhere", package).name == first.name
    (package / "a.py").rename(package / "c.py")
    renamed = snapshot(tmp_path / "outputs", package)
    (package / "sub" / "page.html").write_text("<b>\n")
    changed = snapshot(tmp_path / "outputs", package)
    assert len({first.name, renamed.name, changed.name}) == 3
    assert files(first / "pack") == FILES


def test_a_copy_that_is_there_is_touched_and_left(package: Path, tmp_path: Path) -> None:
    copy = snapshot(tmp_path / "outputs", package)
    (copy / "pack" / "a.py").touch()
    inode = (copy / "pack" / "a.py").stat().st_ino
    os.utime(copy, (0, 0))
    assert snapshot(tmp_path / "outputs", package) == copy
    assert copy.stat().st_mtime > 1e9
    assert (copy / "pack" / "a.py").stat().st_ino == inode


def test_two_launchers_at_once_share_one(package: Path, tmp_path: Path) -> None:
    inodes = []

    def launch() -> None:
        copy = snapshot(tmp_path / "outputs", package)
        inodes.append((copy / "pack" / "a.py").stat().st_ino)

    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inodes) == 8
    assert len({*inodes}) == 1


def test_a_commit_and_the_difference_to_it_are_kept(package: Path, tmp_path: Path) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(
            ["git", *identity, *command], cwd=package, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init")
    git("add", "*.py", "*.html")
    git("commit", "-m", "first")
    (package / "a.py").write_text("x = 5\n")
    copy = snapshot(tmp_path / "outputs", package)
    version = json.loads((copy / "code.json").read_text())
    assert version["commit"] == git("rev-parse", "HEAD")
    assert version["dirty"] is True
    assert "-x = 1\n+x = 5\n" in (copy / "changes.diff").read_text()
    assert code_version(copy / "pack") == version  # what a job writes into its provenance


def test_a_project_that_is_read_only(package: Path, tmp_path: Path) -> None:
    before = sorted(package.parent.rglob("*"))
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    package.parent.chmod(0o555)
    copy = snapshot(tmp_path / "outputs", package)
    assert files(copy / "pack") == FILES
    assert (copy / "pack" / "a.py").stat().st_mode & 0o200
    assert sorted(package.parent.rglob("*")) == before
    for path in [package.parent, *before]:
        path.chmod(0o755)
