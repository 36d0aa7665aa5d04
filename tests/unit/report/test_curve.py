"""The learning curve shows what metrics.jsonl holds."""

import json
import math

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.config.algorithm.base import Panel, Panels, learning_panel
from reasonrl.report.curve import draw_learning_curve, over_rollouts
from reasonrl.runs.folder import RunFolder


def iteration(number, rollouts, **metrics):
    names = {
        "correct": "rollout/correct",
        "length": "rollout/mean_length",
        "cut": "rollout/finish_length",
        "kl": "pg/kl",
        "entropy": "pg/entropy",
        "explained": "pg/explained_variance",
    }
    values = {"correct": 0.3, "length": 32.0, "cut": 0.01, "kl": 0.0, "entropy": 0.06}
    values = values | {"explained": 0.1} | metrics
    return {"step": 0, "pg/iteration": number, "pg/rollouts": rollouts} | {
        names[name]: value for name, value in values.items()
    }


def step(clip_fraction, approx_kl):
    return {"step": 1, "pg/clip_fraction": clip_fraction, "pg/approx_kl": approx_kl}


def validation(rollouts, accuracy):
    return {"step": 0, "pg/rollouts": rollouts, "eval/validation_maj@1": accuracy}


PPO = [
    validation(0, 0.35),
    iteration(1, 64, explained=-4.0),
    step(0.1, 0.001),
    step(0.3, 0.002),
    {"step": 2, "pg/steps": 2, "time/sampling_share": 0.4},
    iteration(2, 128, correct=0.4, length=34.0, cut=0.02, kl=1.5, entropy=0.05, explained=None),
    step(0.2, 0.004),
    {"step": 3, "pg/steps": 1, "time/sampling_share": 0.4},
    validation(128, 0.45),
]


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "ppo-sparse-tiny")


@pytest.fixture
def draw(run, figures):
    """Draws the curve of an algorithm's run with the given records; returns its axes."""

    def draw(records, algorithm="ppo"):
        run.path.mkdir()
        run.metrics.write_text("".join(json.dumps(r) + "\n" for r in records))
        draw_learning_curve(run, ALGORITHMS[algorithm].panels)
        return figures[-1].axes

    return draw


def lines(axes):
    """Of each line its points, without the dashed one at 0; a nan is a gap."""
    return [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]


def test_a_metric_stands_at_the_rollouts_sampled_before_it():
    assert over_rollouts(PPO, "pg/kl", "pg/rollouts") == [(64, 0.0), (128, 1.5)]
    assert over_rollouts(PPO, "eval/validation_maj@1", "pg/rollouts") == [(0, 0.35), (128, 0.45)]
    assert over_rollouts(PPO, "time/sampling_share", "pg/rollouts") == [(64, 0.4), (128, 0.4)]


def test_optimizer_steps_are_averaged_by_iteration():
    # (0.1 + 0.3) / 2 = 0.2 and (0.001 + 0.002) / 2 = 0.0015 over the two steps on 64 rollouts.
    (first, second) = over_rollouts(PPO, "pg/clip_fraction", "pg/rollouts")
    assert first == pytest.approx((64, 0.2))
    assert second == (128, 0.2)
    assert over_rollouts(PPO, "pg/approx_kl", "pg/rollouts")[0] == pytest.approx((64, 0.0015))


def test_null_is_a_gap_and_so_is_a_mean_with_it():
    (first, second) = over_rollouts(PPO, "pg/explained_variance", "pg/rollouts")
    assert first == (64, -4.0)
    assert second[0] == 128
    assert math.isnan(second[1])
    records = [iteration(1, 64), step(0.1, 0.0), step(None, 0.0)]
    ((_, mean),) = over_rollouts(records, "pg/clip_fraction", "pg/rollouts")
    assert math.isnan(mean)


def test_a_metric_that_was_never_logged_has_no_points():
    assert over_rollouts(PPO, "pg/nothing", "pg/rollouts") == []
    assert over_rollouts([], "pg/kl", "pg/rollouts") == []


def test_a_ppo_run_has_six_panels_over_rollouts(draw):
    accuracy, kl, entropy, critic, updates, completions, approx_kl, cut = draw(PPO)
    assert [axes.get_title() for axes in (accuracy, kl, entropy, critic, updates, completions)] == [
        "accuracy",
        "KL to the reference",
        "entropy",
        "critic",
        "updates",
        "completions",
    ]
    assert {a.get_xlabel() for a in (accuracy, kl, entropy, critic, updates, completions)} == {
        "rollouts"
    }
    assert lines(accuracy) == [[[64, 0.3], [128, 0.4]], [[0, 0.35], [128, 0.45]]]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "training questions, sampled",
        "validation, greedy",
    ]
    assert lines(kl) == [[[64, 0.0], [128, 1.5]]]
    assert lines(entropy) == [[[64, 0.06], [128, 0.05]]]
    assert np.array(lines(critic)[0]) == pytest.approx(
        np.array([[64, -4.0], [128, math.nan]]), nan_ok=True
    )
    assert np.array(lines(updates)) == pytest.approx(np.array([[[64, 0.2], [128, 0.2]]]))
    assert np.array(lines(approx_kl)) == pytest.approx(np.array([[[64, 0.0015], [128, 0.004]]]))
    assert lines(completions) == [[[64, 32.0], [128, 34.0]]]
    assert lines(cut) == [[[64, 0.01], [128, 0.02]]]


def test_a_run_without_a_critic_has_no_panel_of_one(draw):
    records = [{k: x for k, x in r.items() if k != "pg/explained_variance"} for r in PPO]
    titles = [axes.get_title() for axes in draw(records) if axes.get_title()]
    assert titles == ["accuracy", "KL to the reference", "entropy", "updates", "completions"]


def test_panels_share_their_rollouts_and_lines_are_as_coloured_as_their_axes(draw):
    accuracy, _, _, critic, updates, completions, approx_kl, cut = draw(PPO)
    assert accuracy.get_ylabel() == "share right"
    assert len({axes.get_xlim() for axes in (accuracy, critic, updates, approx_kl, cut)}) == 1
    assert critic.get_ylim() == (-1, 1)  # -4 is outside and doesn't flatten the rest
    for left, right, labels in (
        (updates, approx_kl, ("clip fraction", "approximate KL, nats per token")),
        (completions, cut, ("mean length in tokens", "share cut off")),
    ):
        assert (left.get_ylabel(), right.get_ylabel()) == labels
        for axes in (left, right):
            assert axes.yaxis.label.get_color() == axes.lines[0].get_color()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("records", "titles"),
    [
        # killed, or its only iteration took no step
        (
            [iteration(1, 64)],
            ["accuracy", "KL to the reference", "entropy", "critic", "completions"],
        ),
        (
            [iteration(1, 64, explained=None), step(0.0, -0.001)],
            ["accuracy", "KL to the reference", "entropy", "critic", "updates", "completions"],
        ),
        ([validation(0, 0.35)], ["accuracy"]),  # no iteration at all
    ],
)
def test_a_run_of_a_single_iteration_or_none_can_be_drawn(run, draw, records, titles):
    assert [axes.get_title() for axes in draw(records) if axes.get_title()] == titles
    height, width, _ = matplotlib.image.imread(run.learning_curve).shape
    # 14 × 7 inches at 120 dots per inch, or one chart's
    assert (width, height) == ((1680, 840) if len(titles) > 1 else (660, 480))


def test_the_only_point_of_a_line_is_visible(draw):
    for axes in draw([iteration(1, 64), step(0.1, 0.001), validation(64, 0.4)]):
        assert axes.lines[0].get_marker() not in ("", "None")
        low, high = axes.get_ylim()
        assert low <= axes.lines[0].get_ydata()[0] <= high
        assert low <= 0


def test_expert_iteration_has_its_loss_and_its_validation(draw):
    loss, accuracy = draw(
        [
            {"step": 0, "ei/round": 0, "ei/rollouts": 0, "eval/validation_maj@1": 0.35},
            {"step": 1, "ei/loss": 0.5, "ei/grad_norm": 1.0},
            {"step": 2, "ei/loss": 0.4, "ei/grad_norm": 1.0},
            {"step": 2, "ei/round": 1, "ei/rollouts": 96, "eval/validation_maj@1": 0.4},
        ],
        "ei",
    )
    assert lines(loss) == [[[1, 0.5], [2, 0.4]]]
    assert lines(accuracy) == [[[0, 0.35], [96, 0.4]]]
    assert (loss.get_xlabel(), accuracy.get_xlabel()) == ("optimizer step", "rollouts")


def test_supervised_fine_tuning_has_its_loss_alone(draw):
    (loss,) = draw([{"step": 1, "sft/loss": 0.5}, {"step": 2, "sft/loss": 0.4}], "sft")
    assert lines(loss) == [[[1, 0.5], [2, 0.4]]]


def test_a_run_without_a_log_can_be_drawn(draw):
    (loss,) = draw([], "sft")
    assert lines(loss) == []


def test_return_conditioned_rl_has_its_loss_and_what_comes_of_asking(draw, run):
    loss, asked = draw(
        [
            {"step": 1, "rcrl/loss": 0.5, "rcrl/grad_norm": 1.0},
            {"step": 2, "rcrl/loss": 0.4, "rcrl/grad_norm": 1.0},
            {
                "step": 2,
                "rcrl/share_[BAD]": 0.75,
                "rcrl/maj@1_[BAD]": 0.1,
                "rcrl/maj@1_[FAIR]": 0.5,
                "rcrl/maj@1_[GOOD]": 0.4,
                "rcrl/conditioning_gap": 0.3,
                "eval/validation_maj@1": 0.4,
            },
        ],
        "rcrl",
    )
    assert lines(loss) == [[[1, 0.5], [2, 0.4]]]
    # Labels stand at 0, 1 and 2, from the worst to the best.
    assert lines(asked) == [[[0, 0.1], [1, 0.5], [2, 0.4]]]
    labels = [tick.get_text() for tick in asked.get_xticklabels()]
    assert labels == ["[BAD]", "[FAIR]", "[GOOD]"]
    assert (asked.get_xlabel(), asked.get_ylabel()) == ("asked for", "maj@1")
    assert asked.get_ylim() == (0, 1)
    height, width, _ = matplotlib.image.imread(run.learning_curve).shape
    assert (width, height) == (1200, 480)  # 10 × 4 inches at 120 dots per inch


def test_a_run_whose_algorithm_declares_no_chart_has_no_picture(run):
    draw_learning_curve(run, ALGORITHMS["sample"].panels)
    assert not run.learning_curve.exists()


def test_any_number_of_charts_is_drawn_in_rows_of_three(run, figures):
    run.path.mkdir()
    run.metrics.write_text('{"step": 1, "a/loss": 0.5}\n{"step": 9, "b/loss": 0.25}\n')
    panels = Panels(rollouts=None, charts=tuple(learning_panel(name) for name in "abab"))
    draw_learning_curve(run, panels)
    first, second, third, fourth = figures[-1].axes
    assert [lines(axes) for axes in (first, second)] == [[[[1, 0.5]]], [[[9, 0.25]]]]
    assert first.get_xlim() == second.get_xlim() == third.get_xlim() == fourth.get_xlim()
    height, width, _ = matplotlib.image.imread(run.learning_curve).shape
    assert (width, height) == (1680, 840)


def test_charts_over_rollouts_need_a_metric_that_counts_them():
    chart = Panel("reward", "score", {"grpo/score": ""}, over="rollouts")
    with pytest.raises(TypeError, match="must name the metric that counts them"):
        Panels(rollouts=None, charts=(chart,))
