"""Each step is paid for its form: calculations first, the answer last.

python train.py reward=function reward.path=examples/rewards/format.py:score
"""

import re

CALCULATION = re.compile(r".*\d.*=.*\d.*")
ANSWER = re.compile(r"####\s*-?[\d.,/]+")


def score(problem, completion, answer):
    """An equal share for each step that has its form, 1 in all."""
    number = len(completion.steps)
    forms = [CALCULATION] * number
    forms[-1:] = [ANSWER] if number else []
    return [
        bool(form.fullmatch(step.strip())) / number
        for form, step in zip(forms, completion.steps, strict=True)
    ]
