"""Are our policy gradients TRL's? Its trainers and ours on the same completions, in float64.

    pip install --no-deps --target FOLDER trl==1.16.0
    python -m benchmarks.trl_losses --trl FOLDER --out benchmarks/results

Eight completions of two questions are given: their token ids and rewards, and the log-probability
of each token under the policy that sampled it, under the policy that learns and under the
reference. TRL's ``GRPOTrainer`` and ``RLOOTrainer`` score them and compute their loss by their own
methods; only sampling and reading the model are replaced, by what is given. Ours are the options of
``advantages`` and ``losses`` that a variant's file names. Of both come the advantage of each
completion, the loss of an optimizer step on all of them, and its gradient by each log-probability
of the policy that learns.

Three things are computed otherwise, and made the same here to see that they are all:

- To a question's standard deviation TRL adds 10⁻⁴, ours 10⁻⁶.
- TRL multiplies the KL in GRPO's loss by the ratio, unless it is told not to.
- RLOO's ratio is of a token in ours and of a completion in TRL's. Ours are made sequences', which
  are the |a|th root of TRL's, and get each log-ratio |a| times. With completions of one token that
  makes no difference.

``tests/unit/policy_gradient/test_trl.py`` holds ours to what this has written.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from benchmarks.trl import RELEASES, find_trl, llama_config, text_of, tokenizer, versions
from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.resolve import resolve
from reasonrl.learning.functional import kl_k1
from reasonrl.policy_gradient import advantages as ours_advantages
from reasonrl.policy_gradient.actor_critic import TokenOutputs
from reasonrl.policy_gradient.advantages import BASELINES, SCALES, Scored
from reasonrl.policy_gradient.losses import AGGREGATIONS, Minibatch, token_losses
from reasonrl.util.atomic import write_json

ROOT = Path(__file__).parents[1]
RELEASE = RELEASES["grpo"]
FILE = "trl-losses.json"
SAMPLES = 4  # of each question
LENGTHS = {"uneven": (1, 4, 2, 5, 3, 1, 5, 2), "single": (1,) * 8}  # tokens of each completion
REWARDS = (1.0, 0.0, 0.5, 0.0, 0.0, 0.25, 1.0, 1.0)
LONGEST = 8  # the most tokens that a completion may have
STD_EPSILON = 1e-4  # TRL's


@dataclass(frozen=True)
class Case:
    """A variant of ours, and the trainer and the settings of TRL that mean the same."""

    name: str
    overrides: tuple[str, ...]  # of ours
    trainer: str  # of TRL
    settings: dict[str, Any]  # of TRL
    completions: str = "uneven"  # which: a key of LENGTHS
    whole_ratio: bool = False  # whether our log-ratios are taken |a| times


@dataclass(frozen=True)
class Completions:
    """B completions; of each a reward, and of each of its tokens three log-probabilities."""

    rewards: tuple[float, ...]
    old: list[list[float]]
    new: list[list[float]]
    reference: list[list[float]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.old]


@dataclass(frozen=True)
class Figures:
    """What is computed of B completions."""

    advantages: list[float]  # of each
    loss: float
    gradient: list[list[float]]  # by each token's log-probability

    def difference(self, other: Figures) -> float:
        """The largest of any number."""
        mine, others = (
            torch.tensor(
                [*x.advantages, x.loss, *chain.from_iterable(x.gradient)], dtype=torch.double
            )
            for x in (self, other)
        )
        return (mine - others).abs().max().item()


GRPO = {
    "loss_type": "grpo",
    "scale_rewards": "group",
    "beta": 0.05,
    "use_bias_correction_kl": False,
    "epsilon": 0.2,
}
OURS_AS_RLOO = ("algorithm=rloo", "algorithm.ratio=sequence", "algorithm.aggregation=sequence")
RLOO = {"beta": 0.05, "epsilon": 0.2}
CASES = (
    Case("grpo", ("algorithm=grpo",), "GRPO", GRPO),
    Case(
        "grpo, ratio of sequences",
        ("algorithm=grpo", "algorithm.ratio=sequence"),
        "GRPO",
        {**GRPO, "importance_sampling_level": "sequence"},
    ),
    Case(
        "dr_grpo",
        ("algorithm=dr_grpo",),
        "GRPO",
        {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0, "epsilon": 0.2},
    ),
    Case(
        "dapo",
        ("algorithm=dapo",),
        "GRPO",
        {
            "loss_type": "dapo",
            "scale_rewards": "group",
            "beta": 0.0,
            "epsilon": 0.2,
            "epsilon_high": 0.28,
        },
    ),
    Case("rloo", OURS_AS_RLOO, "RLOO", RLOO, whole_ratio=True),
    Case("rloo, one token each", OURS_AS_RLOO, "RLOO", RLOO, completions="single"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl", metavar="FOLDER", help="where TRL is, unless it is installed")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    find_trl(args.trl, RELEASE)
    given = {name: drawn(lengths) for name, lengths in LENGTHS.items()}
    cases = []
    for case in CASES:
        completions = given[case.completions]
        trls = theirs(completions, case)
        mine = ours(completions, configured(case.overrides), whole_ratio=case.whole_ratio)
        difference = mine.difference(trls)
        print(f"{case.name:26}  loss {trls.loss:+.9f}  largest difference {difference:.1e}")
        cases.append({**asdict(case), "trl": asdict(trls), "largest_difference": difference})
    found = {
        "what": "trl_losses",
        **versions(RELEASE),
        "completions": {name: asdict(completions) for name, completions in given.items()},
        "cases": cases,
    }
    write_json(args.out / FILE, found)


def configured(overrides: Sequence[str]) -> PPOConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        algorithm: Any = resolve(compose("train", [*overrides])).algorithm
    return algorithm


def drawn(lengths: Sequence[int]) -> Completions:
    """Random log-probabilities: those of a policy, and of two others that aren't far from it."""
    torch.manual_seed(0)
    old = -3 * torch.rand(sum(lengths), dtype=torch.double) - 0.5
    new, reference = (old + 0.3 * torch.randn_like(old) for _ in range(2))
    rows = [
        [[round(number, 3) for number in row.tolist()] for row in x.split([*lengths])]
        for x in (old, new.clamp(max=-0.01), reference.clamp(max=-0.01))
    ]
    return Completions(REWARDS, *rows)


def ours(completions: Completions, config: PPOConfig, *, whole_ratio: bool) -> Figures:
    """What a variant of ours computes, with TRL's ``STD_EPSILON``.

    whole_ratio: whether log-ratios are taken as many times as their completion has tokens.
    """
    lengths = completions.lengths
    old, new, reference = (
        torch.tensor([*chain.from_iterable(rows)], dtype=torch.double)
        for rows in (completions.old, completions.new, completions.reference)
    )
    ends = torch.tensor(lengths) - 1
    mask = torch.arange(max(lengths)) <= ends[:, None]
    rewards = torch.zeros(mask.shape, dtype=torch.double)
    rewards[range(len(ends)), ends] = torch.tensor(completions.rewards, dtype=torch.double)
    if config.kl_penalty == "reward":
        rewards[mask] -= config.kl_coef * kl_k1(old, reference)
    groups = torch.arange(len(lengths)) // SAMPLES
    scored = Scored(rewards, mask, torch.zeros_like(rewards), groups)
    with patch.object(ours_advantages, "STD_EPSILON", STD_EPSILON):
        unscaled, _ = BASELINES[config.baseline](scored, config)
        scaled = SCALES[config.scale](unscaled, scored, config)

    new.requires_grad_()
    times = torch.tensor(lengths).repeat_interleave(torch.tensor(lengths)) if whole_ratio else 1
    outputs = TokenOutputs(old + times * (new - old), torch.empty(0), torch.zeros_like(new))
    beside = {"old_logprobs": old, "ref_logprobs": reference, "advantages": scaled[mask]}
    losses, _ = token_losses(outputs, beside, lengths, config, config.kl_coef)
    of_all = Minibatch(sum(lengths), len(lengths), LONGEST)
    loss = (AGGREGATIONS[config.aggregation](of_all, lengths) * losses).sum() / of_all.num_tokens
    (gradient,) = torch.autograd.grad(loss, new)
    return Figures(
        scaled[:, 0].tolist(), loss.item(), [x.tolist() for x in gradient.split(lengths)]
    )


def theirs(completions: Completions, case: Case) -> Figures:
    """What a trainer of TRL computes."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kinds = {"GRPO": (GRPOConfig, GRPOTrainer), "RLOO": (RLOOConfig, RLOOTrainer)}
    make_config, trainer_class = kinds[case.trainer]
    count = len(completions.rewards)
    prompts = [{"prompt": text_of([number // SAMPLES])} for number in range(count)]
    with tempfile.TemporaryDirectory() as folder, float64():
        LlamaForCausalLM(llama_config()).save_pretrained(folder)
        trainer = type("GivenTrainer", (Given, trainer_class), {})(
            model=LlamaForCausalLM.from_pretrained(folder),
            reward_funcs=lambda **_: list(completions.rewards),
            args=make_config(
                output_dir=folder,
                per_device_train_batch_size=count,
                num_generations=SAMPLES,
                max_completion_length=LONGEST,
                num_iterations=2,  # with 1, GRPO's old policy would be the one that learns
                bf16=False,
                use_cpu=True,
                report_to="none",
                **case.settings,
            ),
            train_dataset=Dataset.from_list(prompts),
            processing_class=tokenizer(eos_token="<end>", pad_token="<end>"),
        )
        trainer.give(completions)
        inputs = trainer._generate_and_score_completions(prompts)
        loss = trainer._compute_loss(trainer.model, inputs)
        (gradient,) = torch.autograd.grad(loss, trainer.new)
    return Figures(
        inputs["advantages"].tolist(),
        loss.item(),
        [row[:length].tolist() for row, length in zip(gradient, completions.lengths, strict=True)],
    )


class Given:
    """A trainer of TRL to which completions are given, with the log-probabilities of their tokens.

    Behind a completion's end stands what must not be read.
    """

    def give(self: Any, completions: Completions) -> None:
        self.given = completions
        self.old, self.new, self.reference = (
            pad_sequence([*map(torch.tensor, rows)], batch_first=True, padding_value=-7.0)
            for rows in (completions.old, completions.new, completions.reference)
        )
        self.new.requires_grad_()
        self.model.train()
        self.current_gradient_accumulation_steps = 1  # as ``train`` would

    def _generate_single_turn(self: Any, *_: Any) -> Any:
        ids = [[*range(length)] for length in self.given.lengths]
        return (ids, None) if hasattr(self, "loss_type") else ids  # GRPO's and RLOO's

    def _get_per_token_logps_and_entropies(
        self: Any, model: Any, *_: Any, compute_entropy: bool = False, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        if compute_entropy:  # for the loss
            return self.new, torch.zeros_like(self.new), None
        return self.reference if model is self.ref_model else self.old, self.new, None


@contextmanager
def float64() -> Iterator[None]:
    """Makes tensors and models of float64, where no other type is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    main()
