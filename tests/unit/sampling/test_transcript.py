"""A question and its answer as people read them."""

from reasonrl.sampling.transcript import transcript
from reasonrl.types import Completion, Problem, Prompt, Rollout


def test_it_has_question_completion_verdict_and_score():
    problem = Problem("v0", "How many are 1 and 2 [in all]?", "3", "1+2=3")
    prompt = Prompt("v0", (1, 2))
    right = Completion("v0", 0, (5, 6, 7), (-0.5,) * 3, "eos", " 1+2=3\n#### 3")
    assert transcript(problem, Rollout(prompt, right, "3", True, (0, 0, 1))) == (
        "v0: How many are 1 and 2 [in all]?\n"
        "  |  1+2=3\n"
        "  | #### 3\n"
        "  answer 3, right (gold 3); score 1; 3 tokens, whole"
    )
    endless = Completion("v0", 0, (5, 6), (-0.5,) * 2, "length", "x" * 801)
    assert transcript(problem, Rollout(prompt, endless, None, False, (0, 0.5))) == (
        "v0: How many are 1 and 2 [in all]?\n"
        f"  | {'x' * 800} …\n"
        "  answer none, wrong (gold 3); score 0.5; 2 tokens, cut off"
    )
