"""What `hydra.launcher` and `hydra.sweeper` say: where and with what a sweep's runs are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reasonrl.config.base import require, require_one_of
from reasonrl.config.schema import TrainConfig
from reasonrl.sweep import slurm
from reasonrl.sweep.manifest import Cluster
from reasonrl.util.errors import UserError

DIRECTIONS = ("maximize", "minimize")
CLUSTERS = ("auto", "slurm", "local")
# Of sbatch's parameters these are ours: by them jobs are found, have one task a node, end in order,
# and are continued.
OURS = {
    "array",
    "chdir",
    "comment",
    "dependency",
    "error",
    "kill-on-invalid-dep",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "signal",
    "wait",
}
OTHER_MEMORY = {"mem", "mem-per-cpu", "mem-per-gpu"}  # sbatch takes one of them
OF_SWEEPS = ("cluster", "wait", "processes", "array_parallelism")  # they can't differ by run


@dataclass
class JobOptions:
    """The options of one job."""

    # Where one of these five is None, the job asks for what its model does (``model.resources``).
    nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None  # of each node, which has one task: it starts the run's ranks
    mem_gb: int | None = None  # of each node; 0: what Slurm gives to those who don't ask
    timeout_min: int | None = None
    # Where one of these is None, Slurm's default counts.
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: list[str] = field(default_factory=list)  # lines of bash before Python starts
    signal_delay_s: int = 120  # how long before its time limit a job is told to save
    max_requeues: int = 100  # how often a job goes back into the queue after it has saved
    # Any other parameters of sbatch, by their long names. One of OTHER_MEMORY replaces mem_gb.
    additional_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class LauncherOptions(JobOptions):
    """The options of a sweep, and those of its jobs."""

    _target_: str = "hydra_plugins.reasonrl_launcher.SweepLauncher"
    cluster: str = "auto"  # slurm, local, or auto, which is slurm where there is an sbatch
    wait: bool = False  # whether the launcher stays on Slurm until all runs have ended
    processes: int = 1  # how many runs are made at a time on this machine
    array_parallelism: int = 1000  # how many runs of an array are made at a time on Slurm


@dataclass
class SearchOptions:
    """The options of ``hydra/sweeper=optuna``."""

    _target_: str = "hydra_plugins.reasonrl_launcher.SearchSweeper"
    metric: str = "eval/validation_maj@1"  # of metrics.jsonl; of a run its best value counts
    direction: str = "maximize"
    num_runs: int = 20
    at_once: int = 1  # how many runs are chosen, and made, before what came of them is heard
    seed: int = 0  # of Optuna's choices
    params: dict[str, Any] = field(default_factory=dict)  # overrides, as the command line has them

    def check(self) -> None:
        """Raises UserError for a value that is out of range."""
        require_one_of("hydra.sweeper.direction", self.direction, DIRECTIONS)
        for name in ("num_runs", "at_once"):
            value = getattr(self, name)
            require(value >= 1, f"hydra.sweeper.{name} must be 1 or more; got {value}.")


def read_options(given: dict[str, Any]) -> LauncherOptions:
    """The validated options of ``hydra.launcher``. Raises UserError for those that can't be."""
    known = LauncherOptions.__dataclass_fields__
    for name in given:
        if name not in known:
            raise UserError(
                f"hydra.launcher.{name} must be a known key; they are {', '.join(known)}. What "
                "else sbatch takes goes into hydra.launcher.additional_parameters."
            )
    options = LauncherOptions(**given)
    validate(options)
    return options


def cluster_of(options: LauncherOptions) -> Cluster:
    """The cluster that the options choose. Raises UserError for one that isn't there."""
    if options.cluster not in CLUSTERS:
        raise UserError(
            f"hydra.launcher.cluster must be one of {', '.join(CLUSTERS)}; got {options.cluster}."
        )
    if options.cluster == "slurm" and not slurm.available():
        raise UserError(
            "hydra.launcher.cluster=slurm must have sbatch on the PATH; got none. Do this on a "
            "login node, or pass hydra.launcher.cluster=local."
        )
    if options.cluster == "local" or not slurm.available():
        return "local"
    return "slurm"


def job_options(options: LauncherOptions, config: TrainConfig) -> dict[str, Any]:
    """The options of a run's job, with what its model asks for where nothing else is said.

    Raises UserError if the run's processes can't be shared out to what the job asks for.
    """
    own = {name: getattr(options, name) for name in JobOptions.__dataclass_fields__}
    resources = config.model.resources
    asked = {
        "nodes": resources.nodes,
        "gpus_per_node": resources.gpus,
        "cpus_per_task": resources.cpus,
        "mem_gb": resources.memory_gb,
        "timeout_min": max(1, round(60 * resources.hours)),
    }
    own |= {name: value for name, value in asked.items() if own[name] is None}
    check_processes(config, own)
    return own


def check_processes(config: TrainConfig, job: Mapping[str, Any]) -> None:
    """Raises UserError if the run's processes can't be shared out to a job with these options."""
    wanted, nodes, gpus = config.runtime.processes, job.get("nodes", 1), job["gpus_per_node"]
    if not isinstance(wanted, int):
        return
    if wanted % nodes or (gpus and wanted > nodes * gpus):
        raise UserError(
            f"runtime.processes={wanted} must be a multiple of the job's nodes, and leave each "
            f"process a GPU where it has any; got {nodes} nodes of {gpus} GPUs. Pass "
            "runtime.processes=auto, or change hydra.launcher.nodes and gpus_per_node."
        )


def validate(options: LauncherOptions) -> None:
    """Raises UserError for a value that is too small, or a parameter that the launcher sets."""
    for name in ("nodes", "cpus_per_task", "timeout_min", "processes", "array_parallelism"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"hydra.launcher.{name} must be 1 or more; got {value}.")
    for name in options.additional_parameters:
        if name.replace("_", "-") in OURS:
            raise UserError(
                f"hydra.launcher.additional_parameters must leave {name} to the launcher, which "
                "needs it. Take it out; nodes says how many a job has, and signal_delay_s when it "
                "is signalled."
            )
    for name in ("gpus_per_node", "mem_gb", "signal_delay_s", "max_requeues"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UserError(f"hydra.launcher.{name} must be 0 or more; got {value}.")
