"""The settings of the engine on vLLM: see ``sampling.vllm``."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasonrl.config.base import IMMATERIAL, require
from reasonrl.config.sampler.base import SamplerConfig


@dataclass(frozen=True)
class VLLMConfig(SamplerConfig):
    """vLLM in the process of the run."""

    max_model_len: int = field(metadata=IMMATERIAL)  # tokens of a prompt with its completion
    gpu_memory_utilization: float = field(metadata=IMMATERIAL)  # its share of a GPU's memory
    # The mean difference, in nats a token, from the learner's log-probabilities from which on new
    # weights are refused; None: ``sampling.vllm.REFUSED`` of the dtype.
    logprob_gap: float | None = field(metadata=IMMATERIAL)

    package = "vllm"

    def check(self) -> None:
        super().check()
        require(
            self.max_model_len >= 2,
            f"sampler.max_model_len must be 2 or more; got {self.max_model_len}.",
        )
        require(
            0 < self.gpu_memory_utilization < 1,
            "sampler.gpu_memory_utilization must be above 0 and below 1; got "
            f"{self.gpu_memory_utilization}.",
        )
        require(
            self.logprob_gap is None or self.logprob_gap > 0,
            f"sampler.logprob_gap must be null or above 0; got {self.logprob_gap}.",
        )
