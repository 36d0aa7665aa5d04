"""The README and docs/: links resolve, names are documented, and shown commands compose."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from reasonrl.config.resolve import resolve, resolve_evaluation

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GLOSSARY = ROOT / "docs" / "metrics.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[bm]*/README.md")])
names = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

# A metric's name begins with that of an algorithm or with one of these.
PREFIXES = {"rollout", "eval", "time", "pg"} | {
    p.stem for p in (ROOT / "conf/algorithm").glob("*.yaml")
}
# Functions whose dictionaries are logged under a prefix that is put in front elsewhere.
UNPREFIXED = {
    "completions_statistics": "rollout",
    "label_statistics": "rcrl",
    "token_losses": "pg",
    "spread": "ei",
}
NOT_LOGGED = {"pg/ratio"}  # only its smallest and its largest value are

PLACEHOLDERS = {
    "outputs/runs/NAME": "outputs/runs/x",
    "outputs/runs/ORM_RUN": "outputs/runs/y",
    "hydra/launcher=site": "hydra/launcher=sweep",
    "file:template.txt": "'\"{question}\"'",
    "…": "",
}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """GitHub's: the heading in lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", without_code(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@names
def test_links_resolve(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@names
def test_tables_are_whole(page: Path):
    """Each has a head, and as many cells in every row; a blank line would end it."""
    for table in re.findall(r"(?:^\|.*\n)+", without_code(text_of(page)) + "\n", re.MULTILINE):
        head, rule, *_ = rows = [*table.splitlines(), ""]
        assert re.fullmatch(r"\|( ?:?-+:? ?\|)+", rule), head
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows if row}) == 1, head


@names
def test_files_and_what_they_define_are_where_the_text_says(page: Path):
    text = text_of(page)
    for file in re.findall(r"`((?:reasonrl|conf|tests|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / file).exists() or "launcher/site.yaml" in file, file
    for listed, file in re.findall(r"((?:`\w+`,? (?:and )?)+)in\s+`(reasonrl/[\w/]+\.py)`", text):
        for name in re.findall(r"\w+(?=`)", listed):
            assert re.search(rf"^ *(def|class) {name}\b", text_of(ROOT / file), re.MULTILINE), name


def test_every_page_is_in_the_index():
    index = text_of(ROOT / "docs" / "README.md")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, name


def test_the_readme_is_short():
    assert len(text_of(README).splitlines()) <= 130


def test_smollm2_is_called_by_its_name():
    for page in PAGES:
        assert not re.search(r"SmolLM2-135M(?!-(\*\*)?Instruct)", text_of(page)), page


def pattern(node: ast.expr | None) -> str | None:
    """The text of a string, with * where an f-string has a value; None: it is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(x.value if isinstance(x, ast.Constant) else "*" for x in node.values)
    return None


@cache
def logged() -> set[str]:
    """All strings of the package that look like a metric's name, * for what isn't known."""
    name_of = rf"({'|'.join(sorted(PREFIXES))})/[\w@*/]*\w[\w@*/]*(?<!_)|\*/(\*_)?\w\w+"
    found = set()
    for file in (ROOT / "reasonrl").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(file))):
            if isinstance(node, ast.expr) and (name := pattern(node)):
                if re.fullmatch(name_of, name):
                    found.add(name)
            elif isinstance(node, ast.FunctionDef) and node.name in UNPREFIXED:
                keys = [x.keys for x in ast.walk(node) if isinstance(x, ast.Dict)]
                keys += [[x.key] for x in ast.walk(node) if isinstance(x, ast.DictComp)]
                named = filter(None, map(pattern, itertools.chain.from_iterable(keys)))
                found |= {f"{UNPREFIXED[node.name]}/{name}" for name in named}
    return found - NOT_LOGGED


@cache
def glossary() -> set[str]:
    """The names in the first cells of the tables, * for what stands for any text."""
    rows = re.findall(r"^\| (`.+?) \|", text_of(GLOSSARY), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    return {re.sub("LABEL|PROTOCOL", "*", name) for name in listed}


def test_every_logged_metric_has_a_row():
    rows = glossary()
    # A name with * is documented by the rows of what it may be, as `*/loss` by `sft/loss`.
    missing = {
        name
        for name in logged()
        if not any(fnmatchcase(name, row) or fnmatchcase(row, name) for row in rows)
    }
    assert not missing


def test_logged_names_are_found():
    found = logged()
    assert found >= {"pg/kl", "ei/new_solutions", "eval/validation_maj@1", "*/grad_norm"}
    assert found >= {"rollout/finish_*", "rcrl/share_*", "rcrl/solutions", "pg/clip_fraction"}


def test_the_glossary_names_nothing_else():
    unknown = {
        row
        for row in glossary()
        if row.partition("/")[0] in PREFIXES
        and not any(fnmatchcase(row, name) or fnmatchcase(name, row) for name in logged())
    }
    assert not unknown


def commands() -> Iterator[tuple[str, str]]:
    """Each shown ``python train.py …`` or ``python evaluate.py …``: entry point, the rest."""
    shown = re.compile(r"(?:^|`)python (train|evaluate)\.py ?([^`#\n]*)", re.MULTILINE)
    for page in PAGES:
        # What docs/extending.md adds isn't there; its own test gives its commands.
        if page.name == "extending.md":
            continue
        for entry, rest in shown.findall(text_of(page)):
            yield entry, rest.rstrip()


@pytest.mark.parametrize(("entry", "rest"), sorted(set(commands())))
def test_shown_commands_compose(entry: str, rest: str):
    for placeholder, value in PLACEHOLDERS.items():
        rest = rest.replace(placeholder, value)
    given = [word for word in shlex.split(rest) if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(given)
    values = [
        [f"{o.get_key_element()}={value}" for value in (o.value().start, o.value().end)]
        if isinstance(o.value(), IntervalSweep)
        else [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [word]
        for o, word in zip(parsed, given, strict=True)
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for overrides in itertools.product(*values):
            check = resolve if entry == "train" else resolve_evaluation
            check(compose(entry, list(overrides)))
