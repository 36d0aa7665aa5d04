"""Hashes of files, of which those of large files are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reasonrl.util import digest
from reasonrl.util.digest import content_of_folder, file_digest

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2's example
LONG_AGO = 10**9


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, where every file is large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "LARGE_BYTES", 1)
    found: list[str] = []
    read = digest._read
    monkeypatch.setattr(digest, "_read", lambda file: found.append(file.name) or read(file))
    return found


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_a_large_file_is_read_once_until_it_changes(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    file = write(tmp_path / "weights", "abc")
    monkeypatch.setattr(digest, "YOUNG_SECONDS", -1)
    assert [file_digest(file) for _ in range(3)] == [ABC] * 3
    assert reads == ["weights"]
    before = file.stat()
    write(file, "abd")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p and rsync leave it
    assert file_digest(file) != ABC
    assert reads == ["weights"] * 2


def test_the_hash_of_a_file_that_has_just_changed_is_not_kept(tmp_path: Path, reads: list[str]):
    file = write(tmp_path / "weights", "abc")
    assert [file_digest(file) for _ in range(2)] == [ABC] * 2
    assert reads == ["weights"] * 2


def test_the_hub_names_a_large_file_by_its_hash(tmp_path: Path, reads: list[str]):
    (tmp_path / "blobs").mkdir()
    blob = write(tmp_path / "blobs" / ("1" * 64), "abc")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_digest(link) == "1" * 64
    assert reads == []


def test_a_folder_is_what_its_files_hold(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "config.json", "{}")
        write(tmp_path / name / "README.md", name)
    write(tmp_path / "c" / "config.json", "[]")
    a, b, c = (content_of_folder(tmp_path / name, ["*.json"]) for name in ("a", "b", "c"))
    assert a == b != c
