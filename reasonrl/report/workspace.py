"""The workspace that W&B shows a project in: algorithm × reward × size, curves, completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.config.algorithm.base import VALIDATION, Over, Panels
from reasonrl.report.wandb_mirror import logged_in
from reasonrl.util.errors import UserError

NAME = "algorithm x reward x size"  # W&B takes × for an emoji
AXES = {"algorithm": "algorithm.name", "reward": "reward.name", "size": "model.name"}
MATRIX = {"after_maj@1": (0, 1), "after_pass@1": (0, 1), "gain_maj@1": (None, None)}
MEDIA = ("learning_curve", "calibration")


def workspace(entity: str, project: str) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``, which only this process has until it is saved.

    Runs are grouped by algorithm, reward and model, so a bar or a line is a cell of the matrix with
    its seeds together. Below are the validation and the losses of all algorithms, and a section
    for each algorithm that declares more charts than these.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(names: Iterable[str], x: str) -> list[Any]:
        return [wr.LinePlot(title=name, x=x, y=[name]) for name in names]

    matrix = [
        wr.BarPlot(title=f"test {name}", metrics=[f"eval/{name}"], range_x=range)
        for name, range in MATRIX.items()
    ]
    by_axis = [
        wr.BarPlot(
            title=f"test maj@1 by {axis}",
            metrics=["eval/after_maj@1"],
            groupby=wr.Config(key),
            range_x=(0, 1),
        )
        for axis, key in AXES.items()
    ]
    declared = {name: algorithm.panels for name, algorithm in ALGORITHMS.items()}
    counters = dict.fromkeys(panels.rollouts for panels in declared.values() if panels.rollouts)
    validation = [
        wr.LinePlot(title=f"validation over {x}", x=x, y=[VALIDATION], range_y=(0, 1))
        for x in ("step", *counters)
    ]
    losses = [name for panels in declared.values() for name in _metrics(panels, "step")]
    own = {
        name: lines([*_metrics(panels, "rollouts"), *panels.more], panels.rollouts or "step")
        for name, panels in declared.items()
    }
    completions = wr.WeavePanelSummaryTable(table_name="completions")
    pictures = [wr.MediaBrowser(title=name, media_keys=[name]) for name in MEDIA]
    sections: dict[str, list[Any]] = {
        NAME: [*matrix, *by_axis],
        "validation": validation,
        "learning": lines(losses, "step"),
        **{name: charts for name, charts in own.items() if charts},
        "completions and pictures": [completions, *pictures],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=panels, is_open=name in (NAME, "validation"))
            for name, panels in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(key) for key in AXES.values()]),
    )


def _metrics(panels: Panels, over: Over) -> list[str]:
    """The metrics of an algorithm's charts over ``over``, without the validation that all share."""
    return [
        name
        for panel in panels.charts
        if panel.over == over
        for name in panel.metrics
        if name != VALIDATION
    ]


def push(entity: str | None, project: str) -> str:
    """Saves the workspace as a new view of the project; returns its address.

    Raises UserError without W&B's packages or a login, or if its server refuses.
    """
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"push must have W&B's packages; got {error}. pip install wandb wandb-workspaces."
        ) from error
    if not logged_in():
        raise UserError("push must have a W&B login; got none. Run wandb login.")
    try:
        view = workspace(entity or str(wandb.Api().default_entity), project)
        return str(view.save().url)
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"push must be taken by W&B's server; got: {reason}") from error
