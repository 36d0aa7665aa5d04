"""The tables of docs/scaling.md: what fits where, and the hours and cost of the paper's matrix.

    python -m benchmarks.scaling             prints the tables
    python -m benchmarks.scaling --write     puts them into the page, each below its marker

All is computed from conf/ by ``reasonrl.pipeline.memory`` and ``reasonrl.pipeline.estimate``, and
nothing is measured. The matrix is planned on GSM8K, of which the folder ``REASONRL_DATA/gsm8k`` has
the files (default: ../shared/data/gsm8k).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir

from reasonrl.config.model import ShapeConfig
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.estimate import gpu_seconds, work
from reasonrl.pipeline.memory import GB, fewest_gpus, memory_of
from reasonrl.pipeline.planner import Planner

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
DATA = Path(os.environ.get("REASONRL_DATA", ROOT.parent / "shared" / "data")) / "gsm8k"
DOLLARS_AN_HOUR = 2.5  # for one H100, as clouds ask in 2025: 2 to 4

PLACES = ((1, 24), (1, 80), (1, 141), (2, 80), (4, 80), (8, 80), (4, 141))  # GPUs, GB of each
ALL, LORA = "algorithm.trainable=all", "algorithm.trainable=lora algorithm.lora_rank=128"
FITS = {
    "SFT, EI, RCRL": f"algorithm=ei dataset=gsm8k {ALL}",
    "the same, LoRA 128": f"algorithm=ei dataset=gsm8k {LORA}",
    "PPO, all weights": f"algorithm=ppo dataset=gsm8k algorithm.value_layers=4 {ALL}",
    "PPO, LoRA 128": f"algorithm=ppo dataset=gsm8k algorithm.value_layers=4 {LORA}",
}
MODELS = ("qwen2.5-0.5b", "llama-3.2-1b", "qwen2.5-1.5b", "7b", "13b")
MATRIX = [(model, algorithm) for model in ("7b", "13b") for algorithm in ("ei", "ppo", "rcrl")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    args = parser.parse_args()
    if args.write:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for table in tables().values():
            print(table, end="\n\n")


def tables() -> dict[str, str]:
    """The tables in Markdown, by the names that their markers have."""
    return {"fits": table(what_fits()), "hours": table(hours())}


def with_tables(page: str) -> str:
    """The page with each table as it is now below ``<!-- table: NAME -->``."""
    for name, text in tables().items():
        below = re.compile(rf"(<!-- table: {name} -->\n)(?:\|.*\n)*")
        page = below.sub(lambda found, text=text: f"{found[1]}{text}\n", page)
    return page


def table(rows: Iterator[Sequence[str]]) -> str:
    """The rows as a table, of which the first is the header."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def what_fits() -> Iterator[Sequence[str]]:
    """For each model and way of learning a row: GB while it learns, and completions at a time."""
    yield ["model", "run", *(f"{count} × {size} GB" for count, size in PLACES), "fewest of 80 GB"]
    for model in MODELS:
        for run, overrides in FITS.items():
            config = configured(f"model={model}", *overrides.split())
            cells = [cell(on(config, count, size)) for count, size in PLACES]
            fewest = fewest_gpus(on(config, 1, 80), shape_of(config))
            yield [f"`{model}`", run, *cells, str(fewest)]


def cell(config: TrainConfig) -> str:
    held = memory_of(config, shape_of(config))
    text = f"{sum(held.learning.values()) / GB:.0f} / {held.rows:,}"
    return text if held.fits else f"**{text}**"


def hours() -> Iterator[Sequence[str]]:
    """A row for each run of the paper's matrix on GSM8K, those that others need first included."""
    yield ["run", "model", "GPUs", "completions", "examples", "hours", "GPU hours", "dollars"]
    planner = Planner(fetch=False, here=False)
    data = ("dataset=gsm8k", f"dataset.path={DATA}")
    wanted = [configured(f"model={m}", f"algorithm={a}", *data) for m, a in MATRIX]
    runs = {one.run: one for config in wanted for one in planner.plan(config).in_order()}
    in_all = 0.0
    for one in runs.values():
        name, model, done = one.config.algorithm.name, one.config.model, work(one)
        gpus, seconds = model.resources.all_gpus, gpu_seconds(one)
        gpu_hours = seconds * gpus / 3600
        in_all += gpu_hours
        counts = [f"{count:,}" if count else "" for count in (done.completions, done.examples)]
        yield [
            name,
            f"`{model.name}`",
            str(gpus),
            *counts,
            f"{seconds / 3600:.1f}",
            *cost(gpu_hours),
        ]
    yield ["all", "", "", "", "", "", *cost(in_all)]


def cost(gpu_hours: float) -> tuple[str, str]:
    return f"{gpu_hours:,.0f}", f"{gpu_hours * DOLLARS_AN_HOUR:,.0f}"


def on(config: TrainConfig, gpus: int, gpu_gb: int) -> TrainConfig:
    """The same run on other GPUs."""
    resources = replace(config.model.resources, nodes=1, gpus=gpus, gpu_gb=gpu_gb)
    return replace(config, model=replace(config.model, resources=resources))


def shape_of(config: TrainConfig) -> ShapeConfig:
    shape = config.model.shape
    assert shape is not None
    return shape


def configured(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


if __name__ == "__main__":
    main()
