"""What a run and an evaluation are made of; YAML under conf/ supplies every value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from reasonrl.config.algorithm.base import Algorithm
from reasonrl.config.base import CONTENT, IMMATERIAL, LATER, require
from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.init import InitConfig
from reasonrl.config.model import ModelConfig
from reasonrl.config.prompt.base import PromptConfig
from reasonrl.config.prompt.plain import PlainConfig
from reasonrl.config.reward.base import RewardConfig
from reasonrl.config.sampler.base import SamplerConfig
from reasonrl.config.tracking.base import TrackingConfig
from reasonrl.config.tracking.none import NoTrackingConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """The protocol by which a policy is judged, beside its dataset."""

    split: str  # one of the dataset's ``splits``
    num_samples_per_prompt: int  # K of maj@K and pass@K
    temperature: float  # of these samples; maj@1 is greedy, whatever the temperature
    # The hash of the split's problems, which a plan finds out; None: they are generated.
    content: str | None = field(default=None, metadata=CONTENT)

    def check(self, dataset: DatasetConfig) -> None:
        """Raises UserError for a value out of range, or a split that the dataset doesn't have."""
        require(
            self.split in dataset.splits,
            f"evaluation.split={self.split} must be one of {', '.join(dataset.splits)}; got "
            f"dataset={dataset.name}.",
        )
        require(
            self.split != "validation" or dataset.num_exemplars == 0,
            f"evaluation.split=validation must leave out the exemplars, which come from it; got "
            f"dataset.num_exemplars={dataset.num_exemplars}. Pass dataset.num_exemplars=0.",
        )
        require(
            self.num_samples_per_prompt >= 1,
            f"evaluation.num_samples_per_prompt must be 1 or more; got "
            f"{self.num_samples_per_prompt}.",
        )
        require(
            0 < self.temperature < math.inf,
            f"evaluation.temperature must be above 0; got {self.temperature}. maj@1 is greedy "
            "whatever it is.",
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is carried out.

    None of it counts in a run's identity. But the numbers of threads and of processes and the kind
    of device change the last bits of sums, and in time the samples: provenance.json records them,
    and the comparison of runs says where they differ.
    """

    outputs: str  # the folder of all runs and sweeps
    threads: int | None  # None: one for each core
    checkpoint_seconds: float  # between checkpoints: a kill loses at most so much work
    # Those that make a run together, or auto (``runs.machines.num_processes``). Older runs had one.
    processes: int | str = "auto"
    log_completions: int = 2  # so many of each validation

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            self.processes == "auto" or (isinstance(self.processes, int) and self.processes >= 1),
            f"runtime.processes must be auto or 1 or more; got {self.processes}.",
        )
        require(
            self.threads is None or self.threads >= 1,
            f"runtime.threads must be null (one for each core) or 1 or more; got {self.threads}.",
        )
        require(
            self.log_completions >= 0,
            f"runtime.log_completions must be 0 (none) or more; got {self.log_completions}.",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """What decides the evaluation of a policy."""

    model: ModelConfig
    dataset: DatasetConfig
    sampler: SamplerConfig
    evaluation: EvaluationConfig
    seed: int
    runtime: RuntimeConfig = field(metadata=IMMATERIAL)
    prompt: PromptConfig = field(default=PlainConfig("plain"), kw_only=True, metadata=LATER)

    @property
    def protocol(self) -> str:
        """The way policies are evaluated, as the name of a folder: ``test-n500-k16-t0.7``.

        The part n is the number of problems; it is there only where a setting limits that number.
        The hash of problems that aren't generated ends it.
        """
        evaluation, dataset = self.evaluation, self.dataset
        size = dataset.size_of(evaluation.split)
        parts = [
            evaluation.split,
            *([] if size is None else [f"n{size}"]),
            f"k{evaluation.num_samples_per_prompt}",
            f"t{str(evaluation.temperature).removesuffix('.0')}",  # to the last digit
            *([] if evaluation.content is None else [evaluation.content[:8]]),
        ]
        return "-".join(parts)


@dataclass(frozen=True)
class TrainConfig(EvaluateConfig):
    """What decides a run. The way its policy is evaluated doesn't count: see ``protocol``."""

    evaluation: EvaluationConfig = field(metadata=IMMATERIAL)
    init: InitConfig
    algorithm: Algorithm
    reward: RewardConfig
    # The default is for older runs, whose configuration has no tracking.
    tracking: TrackingConfig = field(default=NoTrackingConfig("none"), metadata=IMMATERIAL)
