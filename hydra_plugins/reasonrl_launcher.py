"""What Hydra calls for `python train.py -m …` and `python evaluate.py -m …`.

Hydra finds this module because its folder stands beside train.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from reasonrl.sweep.options import LauncherOptions, SearchOptions

if TYPE_CHECKING:
    from reasonrl.runs.folder import RunFolder

MATRIX = "hydra_plugins.reasonrl_launcher.MatrixSweeper"


class MatrixSweeper(BasicSweeper):
    """Sweeps over every combination of values, as Hydra's BasicSweeper does.

    Hydra's also composes each point before the launcher does, which takes seconds or minutes, and
    makes a folder. This one leaves both to the launcher.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Hands all combinations to the launcher at once."""
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (points,) = self.split_arguments(overrides, max_batch_size=None)
        return self.launcher.launch(points, initial_job_idx=0)


class SearchSweeper(Sweeper):
    """Lets Optuna choose the runs: ``hydra/sweeper=optuna``."""

    def __init__(self, **options: Any) -> None:
        self._options = SearchOptions(**options)

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        self._loader, self._dry_run = hydra_context.config_loader, config.dry_run
        self._launcher = SweepLauncher()
        self._launcher.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from reasonrl.sweep.search import search
        from reasonrl.util.entry_point import one_line_errors

        with one_line_errors():
            given = self._options.params or {}
            params = [f"{key}={value}" for key, value in given.items()]
            parser = OverridesParser.create(config_loader=self._loader)
            overrides = parser.parse_overrides([*params, *arguments])
            search(self._options, overrides, self._launcher.make, dry_run=self._dry_run)


class SweepLauncher(Launcher):
    """Submits all points of a sweep, or none if there is something wrong with one of them."""

    def __init__(self, **_: Any) -> None:
        """Ignores the options: they may be swept too, so each point has its own."""

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002 (Hydra's)
        config: DictConfig,
    ) -> None:
        self._config, self._compose = config, Composer(hydra_context, config)

    def launch(
        self,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,  # noqa: ARG002 (Hydra's)
    ) -> Sequence[JobReturn]:
        from reasonrl.util.entry_point import one_line_errors

        with one_line_errors():
            self._carry_out(job_overrides)
        return []

    def _carry_out(self, overrides: Sequence[Sequence[str]]) -> None:
        self.make(overrides, of_search=False)

    def make(
        self, overrides: Sequence[Sequence[str]], *, of_search: bool = True
    ) -> list[RunFolder]:
        """Submits the runs of these points; returns their folders, once done if of a search."""
        from reasonrl.sweep.launch import launch, point

        points = [point(tuple(o), self._compose(o)) for o in overrides]
        return launch(points, dry_run=self._config.dry_run, of_search=of_search)


class EvaluationLauncher(SweepLauncher):
    """Evaluates all points of `python evaluate.py -m …`, one after another."""

    def _carry_out(self, overrides: Sequence[Sequence[str]]) -> None:
        from reasonrl.cli.evaluate import evaluate_all_and_show

        points = {}
        for said in map(tuple, overrides):
            composed = self._compose(said)
            with open_dict(composed):
                del composed["hydra"]
            points[said] = composed
        evaluate_all_and_show(points)


class Composer:
    """Composes points as Hydra does, but reads the files only once for each choice of options.

    Hydra takes a tenth of a second for each point, though most points differ only in a value.
    """

    def __init__(self, hydra_context: HydraContext, config: DictConfig) -> None:
        self._loader, self._master = hydra_context.config_loader, config
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._chosen: dict[tuple[str, ...], DictConfig] = {}
        hydra = config.hydra  # hydra.searchpath may add groups
        self._is_group = cache(
            lambda key: bool(
                self._loader.get_group_options(
                    key, config_name=hydra.job.config_name, overrides=list(hydra.overrides.hydra)
                )
            )
        )

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        parsed = self._parser.parse_overrides(list(overrides))
        values = [
            o for o in parsed if isinstance(o.value(), dict) or not self._is_group(o.key_or_group)
        ]
        choices = tuple(str(o.input_line) for o in parsed if o not in values)
        if choices not in self._chosen:
            self._chosen[choices] = self._loader.load_sweep_config(self._master, list(choices))
        config = copy.deepcopy(self._chosen[choices])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config


store = ConfigStore.instance().store
store(group="hydra/launcher", name="options", node=LauncherOptions)
EVALUATIONS = "hydra_plugins.reasonrl_launcher.EvaluationLauncher"
store(group="hydra/launcher", name="evaluations", node={"_target_": EVALUATIONS})
store(group="hydra/sweeper", name="matrix", node=BasicSweeperConf(MATRIX))
store(group="hydra/sweeper", name="search_options", node=SearchOptions)
