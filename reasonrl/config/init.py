"""The settings of where a run starts from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.config.algorithm.sft import SFTConfig
from reasonrl.config.base import CONTENT, RUN_NAME, require

INITS = ("pretrained", "sft", "ei", "run")


@dataclass(frozen=True)
class InitConfig:
    """The starting policy.

    With init=ei an Expert Iteration run makes it, which itself starts from ``run`` or ``sft`` where
    one of them is set, else from the pretrained model.
    """

    name: str  # one of INITS
    sft: SFTConfig | None = None  # the fine-tuning run that makes the policy
    ei: EIConfig | None = None  # the Expert Iteration run that makes the policy
    # The folder of any earlier run; its name and what it holds count in an identity, not its place.
    run: str | None = field(default=None, metadata=RUN_NAME)
    content: str | None = field(default=None, metadata=CONTENT)  # the hash of that run's policy

    def improved_by(self, policy: EIConfig | None) -> InitConfig:
        """The policy that an Expert Iteration run makes from this one.

        policy: the settings of that run; None: there is no such run, and this policy is returned.
        """
        if policy is None:
            return self
        return dataclasses.replace(self, name="ei", ei=policy)

    def check(self) -> None:
        """Raises UserError for settings that contradict each other or are out of range."""
        require(
            self.run is not None if self.name == "run" else self.run is None or self.name == "ei",
            f"init.run must name a run's folder with init=run, and only there; got "
            f"init={self.name} init.run={self.run}. Pass init=run init.run=outputs/runs/NAME.",
        )
        require(
            self.sft is not None if self.name == "sft" else self.sft is None or self.name == "ei",
            f"init.sft must be set with init=sft or init=ei, and only there; got init={self.name}.",
        )
        require(
            (self.name == "ei") == (self.ei is not None),
            f"init.ei must be set with init=ei, and only there; got init={self.name}.",
        )
        require(
            self.run is None or self.sft is None,
            f"init.run={self.run} must be all that the run of init=ei starts from; got init.sft "
            "too. Pass init.sft=null.",
        )
        if self.sft is not None:
            self.sft.check("init.sft")
        if self.ei is not None:
            self.ei.check("init.ei")
