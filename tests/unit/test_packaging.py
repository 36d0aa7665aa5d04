"""What is installed: dependencies said twice agree, and the parts that aren't code are there."""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Of each file of pins, the ranges in pyproject.toml that it has versions of.
RANGES = {
    "requirements.txt": PROJECT["project"]["dependencies"],
    "requirements-dev.txt": EXTRAS["dev"] + EXTRAS["workspace"] + EXTRAS["search"],
    "requirements-smollm2.txt": EXTRAS["smollm2"],
}


def pins(file: str) -> dict[str, str]:
    """The version of each package in a requirements file."""
    lines = (ROOT / file).read_text().splitlines()
    required = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for requirement in required:
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        found[canonicalize_name(requirement.name)] = specifier.version
    assert len(found) == len(required)
    return found


@pytest.mark.parametrize("file", RANGES)
def test_pins_lie_in_the_ranges(file: str) -> None:
    ranges = {canonicalize_name(r.name): r.specifier for r in map(Requirement, RANGES[file])}
    pinned = pins(file)
    assert pinned.keys() == ranges.keys()
    assert {name for name, version in pinned.items() if version not in ranges[name]} == set()


def test_torch_is_chosen_first() -> None:
    """Its wheel decides for CPU or CUDA, so it isn't left to what another package asks for."""
    assert next(iter(pins("requirements.txt"))) == "torch"


def test_every_extra_is_pinned_somewhere() -> None:
    assert {*EXTRAS} == {"dev", "search", "workspace", "smollm2"}


def test_the_command_is_there() -> None:
    assert PROJECT["project"]["scripts"] == {"reasonrl": "reasonrl.cli.main:main"}
    assert callable(import_module("reasonrl.cli.main").main)


def test_what_is_not_code_is_installed_too() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["include"] == ["reasonrl*", "hydra_plugins"]
    package, patterns = ROOT / "reasonrl", setuptools["package-data"]["reasonrl"]
    installed = {file for pattern in patterns for file in package.glob(pattern)}
    others = {f for f in package.rglob("*") if f.is_file() and f.suffix not in {".py", ".pyc"}}
    assert others <= installed
    assert package / "py.typed" in installed


def test_make_has_the_tiers_that_ci_calls() -> None:
    targets = {*re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    assert {"check", "test", "test-all", "lint", "types", "format"} <= targets
    for file in (".ci/run", ".github/workflows/ci.yml", ".pre-commit-config.yaml"):
        text = (ROOT / file).read_text()
        calls = re.findall(r"^(?:.*(?:run|entry): )?make ([a-z -]+?)(?: #.*)?$", text, re.MULTILINE)
        called = {target for call in calls for target in call.split()}
        assert called <= targets
        assert called or ".ci/run" in text
