"""Imports point downwards only, and what people run on a login node starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "reasonrl"

# A module imports from layers below its own, and from its own layer, except that algorithms never
# import each other (what they share lives below them).
LAYERS = [
    {
        "types",
        "errors",
        "atomic",
        "seeding",
        "functional",
        "answers",
        "metrics",
        "config",
        "diagnosis",
        "provenance",
    },
    {"problems", "prompts", "policy", "checkpoint", "tracking", "runs", "progress", "preemption"},
    {"sampling", "rewards", "rollouts", "supervised", "actor_critic", "experience"},
    {
        "job",
        "trainer",
        "evaluation",
        "predictions",
        "continuations",
        "returns",
        "reward_learning",
    },
    {"algorithms", "report", "wandb_mirror"},
    {"pipeline", "estimate"},
    {"cli", "train", "evaluate", "comparison", "dashboard", "sweep"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = [
    "answers",
    "metrics",
    "runs",
    "report",
    "errors",
    "atomic",
    "tracking",
    "preemption",
    "diagnosis",
    "wandb_mirror",
    "dashboard",
    "sweep",
]

MODULES = sorted(
    file.relative_to(PACKAGE).with_suffix("").as_posix()
    for file in PACKAGE.rglob("*.py")
    if file != PACKAGE / "__init__.py"
)


def imports(module: str) -> set[str]:
    """Dotted names of all it imports, wherever in the file it does."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(module: str) -> set[str]:
    """Of the project's, the parts after ``reasonrl.``."""
    return {
        name.removeprefix("reasonrl.") for name in imports(module) if name.startswith("reasonrl.")
    }


def test_every_module_has_a_layer():
    assert {module.split("/")[0] for module in MODULES} == set(LAYER)
    assert sum(map(len, LAYERS)) == len(LAYER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str):
    part = module.split("/")[0]
    for imported in own_imports(module):
        assert LAYER[imported.split(".")[0]] <= LAYER[part], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("algorithms/")])
def test_algorithms_do_not_import_each_other(module: str):
    if module != "algorithms/__init__":  # the dispatch
        assert not [i for i in own_imports(module) if i.startswith("algorithms")]


def test_modules_without_torch():
    """None of them imports torch in any file of theirs, nor through anything that they import."""
    light = [m for m in MODULES if m.split("/")[0] in WITHOUT_TORCH]
    names = [f"reasonrl.{m.replace('/', '.').removesuffix('.__init__')}" for m in light]
    assert {
        "reasonrl.runs.folder",
        "reasonrl.grading.answers",
        "reasonrl.grading.metrics",
        "reasonrl.report.curve",
    } <= {*names}
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_help_needs_no_torch():
    """The entry points' files, and cli, which they import before Hydra has read the arguments."""
    code = "import train, evaluate, sys; sys.exit('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert process.returncode == 0
