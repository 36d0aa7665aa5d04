"""How much each solution of a problem counts where several are learnt from.

Cross-entropy over right samples weighs a problem by their number, as REINFORCE with a 0/1 reward
does. If each problem's samples share one weight instead, its gradient is that of REINFORCE with the
reward over the problem's mean reward: the gradient of the log-likelihood of a right answer, as K
samples estimate it (Tajwar et al., 2026, MaxRL, arXiv 2602.02710, without its baseline).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence


def problem_weights(problem_ids: Sequence[str]) -> list[float]:
    """The weight of each solution such that every problem weighs the same, and the mean is 1.

    Of N solutions of P problems, one of a problem with n solutions weighs N / (P · n).

    problem_ids: those of the solutions.
    """
    numbers = Counter(problem_ids)
    mean = len(problem_ids) / max(1, len(numbers))
    return [mean / numbers[problem_id] for problem_id in problem_ids]


def spread(
    weights: Iterable[tuple[str, float]], solve_rates: Mapping[str, float]
) -> dict[str, float]:
    """How weight is spread over problems, by metric.

    hard_weight: the share of it on problems of which less than half of the samples are right.
    effective_problems: (Σ w)² / Σ w², over the weights w of problems. It is their number if they
        all weigh the same, and less the more some weigh above others.

    weights: the problem's id and the weight of each solution, one at least.
    solve_rates: the share of samples that are right, by problem.
    """
    by_problem: defaultdict[str, float] = defaultdict(float)
    for problem_id, weight in weights:
        by_problem[problem_id] += weight
    total = sum(by_problem.values())
    hard = sum(weight for problem, weight in by_problem.items() if solve_rates[problem] < 0.5)
    return {
        "hard_weight": hard / total,
        "effective_problems": total**2 / sum(weight**2 for weight in by_problem.values()),
    }
