"""A right answer is worth more, the fewer tokens it takes.

python train.py reward=function reward.path=examples/rewards/length.py:score
"""

LONGEST = 64  # tokens, from which on there is nothing


def score(problem, completion, answer):
    """Falls from 1 to 0 with the number of tokens of a right answer; 0 for a wrong one."""
    if answer != problem.answer:
        return 0.0
    return max(0.0, 1 - completion.num_tokens / LONGEST)
