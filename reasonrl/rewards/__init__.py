"""Rewards: from completions to a score each, paid on their tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from reasonrl.config import DenseConfig, LearnedConfig, RewardConfig
from reasonrl.rewards.base import Reward, Sum, TokenRewards
from reasonrl.rewards.dense import ReferenceSteps
from reasonrl.rewards.learned import Learned
from reasonrl.rewards.reward_model import RewardModel
from reasonrl.rewards.sparse import Outcome

__all__ = ["Reward", "TokenRewards", "make_reward"]


def make_reward(
    config: RewardConfig, tokenizer: PreTrainedTokenizerBase, model: RewardModel | None
) -> Reward:
    """The reward that ``config`` describes; ``model`` is the reward model of a learned one."""
    match config:
        case DenseConfig():
            steps = ReferenceSteps(tokenizer, config.step_weight, config.ordered)
            return Sum((Outcome(config.outcome_weight), steps))
        case LearnedConfig():
            if model is None:
                raise ValueError("a learned reward needs its reward model")
            learned = Learned(model, config.model_weight, config.at)
            return Sum((Outcome(config.outcome_weight), learned))
    return Outcome()
