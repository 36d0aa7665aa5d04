"""docs/extending.md, carried out: what it adds runs, and nothing may be left out of it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reasonrl.config.algorithm import base as algorithm
from reasonrl.config.dataset import base as dataset
from reasonrl.config.reward import base as reward
from reasonrl.grading import base as grading
from reasonrl.sampling import base as sampling
from tests.helpers.configs import ROOT, SMALL

BLOCK = re.compile(r"^```(\w+) title=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [match.groups() for match in BLOCK.finditer((ROOT / "docs/extending.md").read_text())]
FILES = {path: text for kind, path, text in BLOCKS if kind != "diff"}
CHANGES = {path: text for kind, path, text in BLOCKS if kind == "diff"}


def changed(text: str, diff: str) -> str:
    """The text with a change applied: a line that is added goes behind the one before it."""
    lines, place = text.split("\n"), -1
    for line in diff.splitlines():
        sign, rest = line[0], line[1:]
        if sign == "+":
            place += 1
            lines.insert(place, rest)
        else:
            place = lines.index(rest)
            if sign == "-":
                del lines[place]
                place -= 1
    return "\n".join(lines)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with all that the page adds."""
    copy = tmp_path_factory.mktemp("extended") / "project"
    for name in ("reasonrl", "conf", "hydra_plugins", "models/tiny"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    for path, text in FILES.items():
        assert not (copy / path).exists()
        (copy / path).write_text(text)
    for path, diff in CHANGES.items():
        (copy / path).write_text(changed((copy / path).read_text(), diff))
    return copy


def train(project: Path, *overrides: str) -> Path:
    """Makes a run; returns its folder."""
    small = [o for o in SMALL if "max_steps" not in o or "dataset=sums" not in overrides]
    command = [sys.executable, "train.py", *overrides, *small]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = project.glob(f"outputs/runs/{overrides[0].partition('=')[2]}-*")
    return folder


def test_three_new_files_and_a_line_in_two_tables() -> None:
    own = [path for path in FILES if "once" in path]
    assert own == [
        "conf/algorithm/once.yaml",
        "reasonrl/config/algorithm/once.py",
        "reasonrl/algorithms/once.py",
    ]
    tables = [path for path, diff in CHANGES.items() if "once" in diff]
    assert tables == ["reasonrl/config/algorithm/__init__.py", "reasonrl/algorithms/__init__.py"]
    for path in tables:
        added = [line for line in CHANGES[path].splitlines() if line.startswith("+")]
        assert len(added) == 2  # its import, and its line in the table


def test_the_algorithm_runs(project: Path) -> None:
    run = train(project, "algorithm=once", "algorithm.batch_size=8", "algorithm.temperature=1.0")
    assert run.name.startswith("once-sparse-tiny-sft-stories-s0-")
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert '"once/loss"' in (run / "metrics.jsonl").read_text()
    assert (run / "learning_curve.png").exists()
    assert (run / "evaluation" / "test-n10-k4-t0.7" / "gain.json").exists()


def test_variant_dataset_grader_reward_and_engine_run(project: Path) -> None:
    extended = ["dataset=sums", "reward=brief", "sampler=generate", "algorithm.rounds=1"]
    run = train(project, "algorithm=raft", *extended, "algorithm.num_samples_per_prompt=[2]")
    assert run.name.startswith("raft-brief-tiny-sft-sums-s0-")
    assert '"ei/new_solutions"' in (run / "metrics.jsonl").read_text()  # a variant of ei
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    code = (
        "import pyarrow.parquet as pq, sys; rows = pq.read_table(sys.argv[1]).to_pylist();"
        "read = [r for r in rows if r['answer'] is not None];"
        "sys.exit(not (len(rows) == 24 and read and all('####' not in r['text'] for r in read) "
        "and all(r['correct'] == (r['score'] >= 1) for r in rows)))"
    )
    rollouts = str(run / "rollouts" / "round-1.parquet")
    assert subprocess.run([sys.executable, "-c", code, rollouts], check=False).returncode == 0


def test_a_rule_of_the_page_holds(project: Path) -> None:
    small = [o for o in SMALL if "max_steps" not in o]
    command = [sys.executable, "train.py", "dataset=sums", "reward=dense", *small]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "reward=dense must have calculations in the reference solutions to pay for" in said


TABLES = {
    "reasonrl/algorithms/__init__.py": "algorithm once",
    "reasonrl/problems/__init__.py": "dataset sums",
    "reasonrl/rewards/__init__.py": "reward brief",
    "reasonrl/sampling/__init__.py": "engine generate",
}


@pytest.mark.parametrize(("table", "option"), TABLES.items())
def test_an_option_that_one_table_lacks_is_named_at_import(
    project: Path, tmp_path: Path, table: str, option: str
) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project / "reasonrl", copy / "reasonrl")
    shutil.copy(ROOT / table, copy / table)
    module = table.removesuffix("/__init__.py").replace("/", ".")
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    said = f"TypeError: {option} must be listed in both tables; its work is missing"
    assert done.stderr.splitlines()[-1] == said


def without(source: str, member: str) -> str:
    """A module's source without this member of its class."""
    tree = ast.parse(source)
    for node in [n for n in tree.body if isinstance(n, ast.ClassDef)]:
        node.body = [part for part in node.body if name_of(part) != member]
    return ast.unparse(tree)


def name_of(part: ast.stmt) -> str | None:
    if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
        return part.targets[0].id
    return part.name if isinstance(part, ast.FunctionDef) else None


KINDS = {
    "reasonrl/config/algorithm/once.py": ("algorithm OnceConfig", algorithm.DECLARATIONS),
    "reasonrl/config/dataset/sums.py": ("dataset SumsConfig", dataset.DECLARATIONS),
    "reasonrl/grading/last_number.py": ("grader LastNumber", grading.DECLARATIONS),
    "reasonrl/config/reward/brief.py": ("reward BriefConfig", reward.DECLARATIONS),
    "reasonrl/sampling/generate.py": ("engine GenerateEngine", sampling.DECLARATIONS),
}
LEFT_OUT = [(path, kind, member) for path, (kind, members) in KINDS.items() for member in members]


def test_what_must_be_declared() -> None:
    """So that a declaration that isn't asked for any more is missed here."""
    assert algorithm.DECLARATIONS == (
        "makes", "reads_reward", "questions", "panels", "keeps", "check", "needs", "shorter",
        "outline", "work", "footprint", "layers", "longest",
    )  # fmt: skip
    assert dataset.DECLARATIONS == ("splits", "grader", "local")
    assert reward.DECLARATIONS == ("judges_steps_by", "needs", "finished_run")


@pytest.mark.parametrize(("path", "kind", "member"), LEFT_OUT)
def test_what_is_left_out_is_named_at_import(path: str, kind: str, member: str) -> None:
    source = without(FILES[path], member)
    assert source != ast.unparse(ast.parse(FILES[path]))
    with pytest.raises(TypeError, match=rf"^{kind} must declare {member}$"):
        exec(compile(source, path, "exec"), {"__name__": "example"})
