"""The settings that the two learned rewards share: see ``reasonrl.rewards.learned``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.config.algorithm.reward_model import RewardModelConfig
from reasonrl.config.base import RUN_NAME, require_one_of, unless
from reasonrl.config.reward.base import RewardConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig

AT = ("end", "steps", "differences")


@dataclass(frozen=True)
class LearnedConfig(RewardConfig, abstract=True):
    """A reward model's verdict, beside the true outcome.

    Without ``run`` a run of the subclass's ``model`` makes the reward model first, on completions
    of the policy that ``policy`` makes from the same init.
    """

    outcome_weight: float  # for the right final answer
    model_weight: float  # for the reward model's verdict
    at: str  # where the verdict is paid; see ``rewards.learned.Learned``
    run: str | None = field(metadata=RUN_NAME)  # a finished reward-model run's folder
    policy: EIConfig | None = field(metadata=unless("run"))  # None: the starting policy itself

    judges_steps_by = "reward model"

    @property
    def reward_model(self) -> RewardModelConfig:
        """The settings of the run that makes the reward model, where there is none yet."""
        raise NotImplementedError

    def check(self) -> None:
        super().check()
        require_one_of("reward.at", self.at, AT)
        if self.policy is not None:
            self.policy.check("reward.policy")
        self.reward_model.check("reward.model")

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        if self.run is not None:
            return {}
        student = run.init.improved_by(self.policy)
        return {"reward": dataclasses.replace(run, algorithm=self.reward_model, init=student)}

    def finished_run(self) -> str | None:
        return self.run
