"""How the package is built: which room may know of which, and what starts without torch.

A room is a folder of the package, or a module beside the folders. Each rule lists all that breaks
it. What is imported under ``if TYPE_CHECKING:`` is never run, and so is no import here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.configs import ROOT

PACKAGE = ROOT / "reasonrl"

# From the ground up. A room imports from lower floors, and from others of its floor in one
# direction.
FLOORS = [
    {"types", "util"},
    {"config", "grading"},
    {"problems", "runs", "rewards", "policy"},
    {"sampling", "learning"},
    {"evaluation"},
    {"job"},
    {"policy_gradient", "reward_models"},
    {"algorithms"},
    {"report"},
    {"pipeline"},
    {"sweep"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What ``python -m`` finds under these names; the commands themselves are in cli.
SHIMS = {"dashboard", "sweep.__main__"}

MOST_ENTRIES = 22  # of the package's top level: as many as a reader takes in at once

# What runs on a login node, or before an entry point has read its arguments.
LIGHT = {"types", "util", "config", "grading", "problems", "runs", "report", "sweep"}
LIGHT |= {
    "cli.predictions",
    "cli.sweep",
    "cli.dashboard",
    "dashboard",
    "pipeline.contents",
    "policy.source",
}
HEAVY = {"torch", "transformers", "datasets"}

Graph = dict[str, set[str]]


def module_of(file: Path) -> str:
    """``sweep.status``; a package's own ``__init__`` goes by the package's name."""
    name = file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


TREES = {
    module_of(file): ast.parse(file.read_text())
    for file in sorted(PACKAGE.rglob("*.py"))
    if file != PACKAGE / "__init__.py"
}


def nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes_that_run(node)


def own_imports(module: str) -> set[str]:
    """Of the package's modules those that it imports, at its top or in a function."""
    found = set()
    for node in nodes_that_run(TREES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("reasonrl."):
                own = name.removeprefix("reasonrl.")
                found.add(own if own in TREES else own.rpartition(".")[0])
    return found


IMPORTS: Graph = {module: own_imports(module) for module in TREES}


def room_of(module: str) -> str:
    return "cli" if module in SHIMS else module.partition(".")[0]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One that there is, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in TREES} == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_imports_point_downwards() -> None:
    upwards = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in sorted(all_imported)
        if FLOOR[room_of(imported)] > FLOOR[room_of(module)]
    ]
    assert upwards == []


def test_rooms_do_not_import_each_other() -> None:
    rooms: Graph = {room: set() for room in FLOOR}
    for module, imported in IMPORTS.items():
        rooms[room_of(module)] |= {*map(room_of, imported)} - {room_of(module)}
    assert circle(rooms) == []


def test_modules_do_not_import_each_other() -> None:
    assert circle(IMPORTS) == []


def test_algorithms_do_not_import_each_other() -> None:
    """What they share lives below them. The table of them all is the package's own ``__init__``."""
    shared = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in sorted(all_imported)
        if module.startswith("algorithms.") and room_of(imported) == "algorithms"
    ]
    assert shared == []


def test_the_package_s_top_level_is_taken_in_at_once() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def names_in(node: ast.AST) -> set[str]:
    """``X`` of ``X``, ``module.X`` and ``(X, Y)``."""
    found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def classes_asked_for(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Where isinstance, issubclass or a case asks for a class, by the line and the names there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.MatchClass):
            yield node.lineno, names_in(node.cls)
        elif isinstance(node, ast.Call) and names_in(node.func) & {"isinstance", "issubclass"}:
            yield node.lineno, {name for given in node.args[1:] for name in names_in(given)}


SETTINGS = {
    node.name
    for module, tree in TREES.items()
    if room_of(module) == "config"
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}


def dispatches(module: str, tree: ast.AST) -> list[str]:
    return [
        f"{module}:{line} asks for {', '.join(sorted(names & SETTINGS))}"
        for line, names in classes_asked_for(tree)
        if names & SETTINGS
    ]


def test_nothing_is_decided_by_the_class_of_settings() -> None:
    """Settings say of themselves what others have to know; or a table has it, by their name."""
    found = [
        place
        for module, tree in TREES.items()
        if room_of(module) != "config"
        for place in dispatches(module, tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(config, PPOConfig)",
        "isinstance(config.algorithm, (int, ppo.PPOConfig | None))",
        "issubclass(cls, PPOConfig)",
        "match config:\n    case PPOConfig(epochs=1): pass",
        "match config:\n    case [str(), ppo.PPOConfig() | None]: pass",
    ],
)
def test_a_decision_by_the_class_of_settings_is_seen(code: str) -> None:
    assert len(dispatches("a", ast.parse(code))) == 1
    assert dispatches("a", ast.parse(code.replace("PPOConfig", "PPO"))) == []


def test_light_modules_import_nothing_heavy() -> None:
    """None of them imports torch in any file of theirs, nor through anything that they import."""
    light = [m for m in TREES if {m, m.partition(".")[0]} & LIGHT]
    assert {"runs.folder", "grading.answers", "report.curve", "cli.sweep", "types"} <= {*light}
    names = [f"reasonrl.{module}" for module in light]
    code = (
        f"import importlib, sys\n"
        f"found = []\n"
        f"for name in {names}:\n"
        f"    importlib.import_module(name)\n"
        f"    found += [f'{{name}} imports {{one}}' for one in {HEAVY} & set(sys.modules)]\n"
        f"    if found: sys.exit(f'{{found}}')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_mistakes_and_finished_runs_are_told_without_torch() -> None:
    modules = "reasonrl.cli.train, reasonrl.pipeline.planner, reasonrl.pipeline.outcome"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_needs_no_torch() -> None:
    """The entry points' files, and what they import before Hydra has read the arguments."""
    code = "import train, evaluate, sys; sys.exit('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert process.returncode == 0
