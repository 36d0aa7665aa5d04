"""A sweep's page as people use it: in a real browser, which is kept off the network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from reasonrl.cli.dashboard import main
from reasonrl.grading.estimates import paired_difference
from reasonrl.report.page import page as html
from reasonrl.report.run_data import RunData
from reasonrl.sweep.manifest import Member
from reasonrl.sweep.table import COLOURS
from reasonrl.sweep.verdict import Verdict
from tests.helpers.fake_sweep import make_run, make_sweep, write_estimates

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed"),
]

EVIL = '<img src=x onerror="window.ran = 1"></script><script>window.ran = 2</script>'
SFT, EI, PPO, FAILED, WAITING = (
    "sft-sparse-tiny-pretrained-s0",
    "ei-dense-tiny-sft-s0",
    "ppo-dense-tiny-sft-s0",
    "ppo-sparse-tiny-sft-s1",
    "rcrl-sparse-small-sft-s0",
)
LINES = {
    SFT: ['{"step": 1, "sft/loss": 3.25}', '{"step": 2, "sft/loss": 1.125}'],
    EI: [
        '{"step": 0, "ei/round": 0, "ei/rollouts": 0, "eval/validation_maj@1": 0.1}',
        '{"step": 1, "ei/loss": 2.3333333333333335, "time/seconds": 0.30000000000000004}',
        '{"step": 2, "ei/loss": null}',
        '{"step": 3, "ei/loss": 1e-300}',
        '{"step": 3, "ei/round": 1, "ei/rollouts": 512, "eval/validation_maj@1": 0.7}',
    ],
    PPO: [
        '{"step": 0, "pg/rollouts": 0, "eval/validation_maj@1": 0.2}',
        '{"step": 0, "pg/rollouts": 64, "rollout/correct": 0.123456789012345678}',
        '{"step": 4, "pg/approx_kl": 5e-324}',
        '{"step": 4, "pg/rollouts": 64, "eval/validation_maj@1": 0.6}',
        '{"step": 8, "pg/rollouts": 128, "eval/validation_maj@1": null}',
        '{"step": 12, "pg/rollouts": 192, "eval/validation_maj@1": 0.8999999999999999}',
    ],
}
# Of each line of EI and PPO, the rollouts sampled so far.
ROLLOUTS = {EI: [0, 0, 0, 0, 512], PPO: [0, 64, 64, 64, 128, 192]}
PLOTTED = """index => document.querySelectorAll(".chart")[index].data.map(
    line => ({name: line.name, x: [...line.x], y: [...line.y]}))"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    right = {f"q{i}": i % 2 == 0 for i in range(20)}
    make_run(
        outputs,
        SFT,
        lines=LINES[SFT],
        evaluations={"after": {"maj@1": (0.1, 0.0, 0.2)}},
        correct=dict.fromkeys(right, False),
    )
    after = {"maj@1": (0.9, 0.8, 1.0), "maj@4": (0.25, 0.1, 0.4)}
    evaluations = {"after": after}
    ei = make_run(outputs, EI, lines=LINES[EI], evaluations=evaluations, correct=right, text=EVIL)
    write_estimates(ei.evaluation / "gain.json", {"maj@1": (0.5, 0.25, 0.75)})
    make_run(outputs, PPO, lines=LINES[PPO], evaluations={"after": {"maj@1": (0.095, 0.05, 0.125)}})
    make_run(outputs, FAILED, state="failed", error=f"ValueError: {EVIL}")
    make_run(outputs, WAITING, state=None)
    members = [Member(SFT, None), Member(EI, [f"+note={EVIL}"], [SFT])]
    members += [Member(name, ["algorithm=ppo"], [SFT]) for name in (PPO, FAILED, WAITING)]
    return page_of(outputs, members)


def page_of(outputs: Path, members: list[Member]) -> Path:
    sweep = make_sweep(outputs, members)
    main(["html", str(sweep.path)])
    return sweep.path / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """Freshly opened."""
    with opened(browser, file) as page:
        yield page


@contextmanager
def opened(browser: Any, file: Path, width: int = 1400) -> Iterator[Any]:
    """Whatever a test does, nothing may go wrong or ask for anything."""
    page = browser.new_page(viewport={"width": width, "height": 1000})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.route(
        "**/*", lambda route: route.abort() if "http" in route.request.url else route.continue_()
    )
    page.goto(file.as_uri())
    yield page
    assert complaints == [file.as_uri()]  # opened once
    assert page.evaluate("window.ran") is None
    page.close()


def plotted(page: Any, chart: int = 0) -> dict[str, tuple[list[Any], list[Any]]]:
    return {line["name"]: (line["x"], line["y"]) for line in page.evaluate(PLOTTED, chart)}


def listed(page: Any) -> list[str]:
    return [
        row.removeprefix("run-")
        for row in page.evaluate(
            '[...document.querySelectorAll("#runs tbody tr.run")].map(row => row.id)'
        )
    ]


def test_the_validation_curves_come_first(page: Any) -> None:
    assert page.title() == page.inner_text("h1") == "ei-ppo-1a2b3c4d"
    assert page.inner_text("#command") == "python train.py -m algorithm=ei,ppo"
    assert page.inner_text("#created") == "2026-01-02 03:04:05 UTC"
    assert plotted(page) == {
        EI: ([0, 3], [0.1, 0.7]),
        PPO: ([0, 4, 8, 12], [0.2, 0.6, None, 0.8999999999999999]),
    }


def test_every_metric_is_as_it_was_logged(page: Any) -> None:
    page.click("text=tick these")  # also the run that others need
    records = {name: [json.loads(line) for line in lines] for name, lines in LINES.items()}
    names = {key for lines in records.values() for record in lines for key in record} - {"step"}
    chooser = page.locator(".plot select").first
    assert set(chooser.locator("option").all_inner_texts()) == names
    for name in names:
        chooser.select_option(name)
        page.select_option("#x", "step")
        of_runs = {
            run: [record for record in lines if name in record] for run, lines in records.items()
        }
        assert plotted(page) == {
            run: ([record["step"] for record in lines], [record[name] for record in lines])
            for run, lines in of_runs.items()
            if lines
        }
        page.select_option("#x", "rollouts")
        assert plotted(page) == {
            run: (
                [n for n, record in zip(at, records[run], strict=True) if name in record],
                [record[name] for record in of_runs[run]],
            )
            for run, at in ROLLOUTS.items()
            if of_runs[run]
        }


def test_ticks_choose_the_lines(page: Any) -> None:
    page.get_by_label(f"plot {EI}").uncheck()
    assert list(plotted(page)) == [PPO]
    page.get_by_label(f"plot {EI}").check()
    assert list(plotted(page)) == [EI, PPO]
    page.click("text=untick these")
    assert plotted(page) == {}


def test_sorting(page: Any) -> None:
    # The best first, as a number; runs without it last.
    assert listed(page) == [EI, SFT, PPO, FAILED, WAITING]
    page.locator("#runs th button", has_text="after maj@1").click()
    assert listed(page) == [PPO, SFT, EI, FAILED, WAITING]
    page.locator("#runs th button", has_text="name").focus()
    page.keyboard.press("Enter")
    assert listed(page) == sorted([SFT, EI, PPO, FAILED, WAITING])
    page.keyboard.press("Enter")  # who uses the keyboard is still there
    assert listed(page) == sorted([SFT, EI, PPO, FAILED, WAITING], reverse=True)


def test_filters(page: Any) -> None:
    page.select_option("select[name=algorithm]", "ppo")
    assert listed(page) == [PPO, FAILED]
    assert list(plotted(page)) == [PPO]
    page.select_option("select[name=reward]", "sparse")
    assert listed(page) == [FAILED]
    page.select_option("select[name=algorithm]", "")
    page.select_option("select[name=reward]", "")
    page.select_option("select[name=model]", "small")
    assert listed(page) == [WAITING]
    page.select_option("select[name=model]", "")
    page.fill("#text", "valueERROR seed=1")
    assert listed(page) == [FAILED]
    assert page.inner_text("#count") == "1 of 5 listed, 1 of them ticked"
    assert matrices(page) == ["tiny · stories sparse ppo failed"]


def test_the_table_tells_what_became_of_the_runs(page: Any) -> None:
    def cell(run: str, column: int) -> str:
        return page.inner_text(f"#run-{run} td:nth-child({column})")

    headings = page.locator("#runs th").all_inner_texts()
    assert headings == [
        *("name", "state", "algorithm", "reward", "model", "seed", "settings"),  # what differs
        *("after maj@1 ▼", "gain maj@1", "before maj@1", "after maj@4"),
        *("init", "dataset", "attempt", "overrides"),
    ]
    assert [cell(EI, column) for column in range(3, 8)] == [
        *("ei", "dense", "tiny", "0", f"+note={EVIL}"),
    ]
    assert cell(EI, 8) == "90.0% [80.0, 100.0]"
    assert cell(EI, 9) == "50.0% [25.0, 75.0]"
    assert page.locator(f"#run-{EI} td:nth-child(9) b.right").count() == 1
    assert cell(EI, 10) == "10.0% [0.0, 20.0]"
    assert [cell(EI, column) for column in range(12, 15)] == ["sft", "stories", "2"]
    assert cell(EI, 15) == f"+note={EVIL}"
    assert cell(SFT, 15) == "needed by others"
    assert cell(FAILED, 2) == f"failed\nValueError: {EVIL}"
    assert (cell(WAITING, 2), cell(WAITING, 14)) == ("to do", "")
    states = page.locator("#states .state").all_inner_texts()
    assert states == ["3 done", "1 failed", "1 to do"]


def matrices(page: Any) -> list[str]:
    return [" ".join(text.split()) for text in page.locator("#matrices > div").all_inner_texts()]


def test_the_matrix(page: Any) -> None:
    first, second = matrices(page)
    assert [first, second] == [
        f"tiny · stories dense sparse no reward ei +note={EVIL} "
        "90.0% [80.0, 100.0] gain +50.0 [25.0, 75.0] "
        "ppo 9.5% [5.0, 12.5] failed sft 10.0% [0.0, 20.0]",
        "small · stories sparse rcrl to do",
    ]


def test_completions_are_text(page: Any) -> None:
    page.click(f"#run-{EI} td.name button")
    assert page.locator("tr.details pre").count() == 20
    assert page.locator("tr.details pre").first.inner_text() == EVIL
    row = page.locator("tr.details .completions tr")
    page.select_option("tr.details select[aria-label=verdict]", "wrong")
    assert page.locator("tr.details pre").count() == 10
    assert page.locator("tr.details h3 small").inner_text() == "10 of the first 20"
    page.fill("tr.details input", "Q3")
    assert row.locator("td").first.inner_text() == "q3"
    page.fill("tr.details input", "")
    page.select_option("tr.details select[aria-label=verdict]", "right and wrong")
    assert row.first.locator("td").first.inner_text() == "q0"
    assert row.nth(0).locator("td").last.inner_text() == "✓ 5"
    assert row.nth(1).locator("td").last.inner_text() == "✗ 5"
    assert page.locator("img").count() == 0
    page.click(f"#run-{EI} td.name button")
    assert page.locator("tr.details").count() == 0


def test_more_plots_and_smoothing(page: Any) -> None:
    count = page.locator(".plot").count()
    page.click("text=add a plot")
    assert page.locator(".plot").count() == count + 1
    page.locator(".plot button[title='close this plot']").last.click()
    assert page.locator(".plot").count() == count
    page.fill("#smoothing", "0.5")
    # Weights 1 and 2 of the two newest: (0.2 + 2 * 0.6) / 3; a gap stays; then 1, 2, 4.
    _, values = plotted(page)[PPO]
    assert values[0] == pytest.approx(0.2)
    assert values[1] == pytest.approx(1.4 / 3)
    assert values[2] is None
    assert values[3] == pytest.approx((0.2 + 2 * 0.6 + 4 * 0.9) / 7)


def test_hovering_tells_run_and_value(page: Any) -> None:
    last = page.locator(".chart").first.locator(".point").last
    label = page.locator(".hoverlayer .hovertext")
    for _ in range(50):  # a plot settles when its box has found its size
        if box := last.bounding_box():  # None while it is drawn anew
            page.mouse.move(0, 0)
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        if label.count():
            break
    text = label.text_content()
    assert PPO in text
    assert "0.9" in text


def test_settings_are_told_apart_and_seeds_are_averaged(browser: Any, tmp_path: Path) -> None:
    members = []
    for ratio, seed, value in (("inf", 0, 0.5), ("inf", 1, 0.7), ("0.3333", 0, 0.2)):
        after = {"after": {"maj@1": (value, value - 0.1, value + 0.1)}}
        name = f"rcrl-sparse-tiny-sft-s{seed}-{len(members):08x}"  # only the hash differs
        line = '{"step": 1, "rcrl/loss": 1.5}'
        make_run(tmp_path, name, lines=[line], evaluations=after)
        overrides = ["algorithm=rcrl", f"seed={seed}", f"algorithm.solution_ratio={ratio}"]
        members.append(Member(name, overrides))
    with opened(browser, page_of(tmp_path, members)) as page:
        assert matrices(page) == [
            "tiny · stories sparse rcrl solution_ratio=0.3333 20.0% [10.0, 30.0] "
            "rcrl solution_ratio=inf 60.0% mean of 2 seeds range 50.0 to 70.0"
        ]
        assert page.locator(".legend > span").all_inner_texts() == [
            "rcrl-sparse-tiny-sft-s0 solution_ratio=inf",
            "rcrl-sparse-tiny-sft-s1 solution_ratio=inf",
            "rcrl-sparse-tiny-sft-s0 solution_ratio=0.3333",
        ]
        headings = page.locator("#runs th").all_inner_texts()
        assert headings[:5] == ["name", "state", "seed", "settings", "after maj@1 ▼"]


def test_seeds_are_a_line_in_a_band(browser: Any, tmp_path: Path) -> None:
    """Of curves with unlike steps, where both have a value, on the lines between their points."""
    curves = {0: [(0, 0.0), (2, 0.4), (4, 0.8)], 1: [(0, 0.2), (1, 0.4), (3, 0.6)]}
    members = []
    for seed, points in curves.items():
        name = f"ei-sparse-tiny-sft-s{seed}-1a2b3c4d"
        lines = [f'{{"step": {step}, "ei/loss": {value}}}' for step, value in points]
        make_run(tmp_path, name, lines=lines)
        members.append(Member(name, [f"seed={seed}"]))
    other = "ppo-sparse-tiny-sft-s0"
    make_run(tmp_path, other, lines=['{"step": 0, "ei/loss": 1.5}'])
    members.append(Member(other, ["algorithm=ppo"]))
    with opened(browser, page_of(tmp_path, members)) as page:
        assert len(plotted(page)) == 3
        page.check("#seeds")
        lines = plotted(page)
        steps, means = lines["ei-sparse-tiny-sft"]
        assert steps == [0, 1, 2, 3]
        assert means == pytest.approx([0.1, 0.3, 0.45, 0.6])
        assert lines["ei-sparse-tiny-sft low"][1] == pytest.approx([0.0, 0.2, 0.4, 0.6])
        assert lines["ei-sparse-tiny-sft high"][1] == pytest.approx([0.2, 0.4, 0.5, 0.6])
        assert lines[other] == ([0], [1.5])
        with page.expect_download() as download:
            page.click(".plot button >> text=CSV")
        saved = Path(download.value.path()).read_text().splitlines()
        assert download.value.suggested_filename == "ei-loss.csv"
        assert saved[:3] == [
            "run,step,ei/loss",
            f"{members[0].name},0,0",
            f"{members[0].name},2,0.4",
        ]


def test_what_is_listed_is_saved(browser: Any, tmp_path: Path) -> None:
    """All digits of it, and a text with a comma in quotation marks."""
    members = []
    for number, setting in enumerate(["x=[1,2]", "x=[3]"]):
        name = f"ppo-sparse-tiny-sft-s0-{number:08x}"
        make_run(tmp_path, name, evaluations={"after": {"maj@1": (1 / 3, 0.25, 0.5)}})
        members.append(Member(name, [setting]))
    with opened(browser, page_of(tmp_path, members)) as page:
        page.fill("#text", "[1,2]")
        with page.expect_download() as download:
            page.click("#save")
        assert Path(download.value.path()).read_text().splitlines() == [
            "name,state,algorithm,reward,model,init,dataset,seed,settings,"
            "after/maj@1,after/maj@1 low,after/maj@1 high,after/maj@1 n",
            'ppo-sparse-tiny-sft-s0-00000000,done,ppo,sparse,tiny,sft,stories,0,"x=[1,2]",'
            "0.3333333333333333,0.25,0.5,4",
        ]


def test_a_narrow_screen_is_enough(browser: Any, file: Path) -> None:
    with opened(browser, file, width=400) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        for box in page.locator(".plot, #matrices > div, .scroll").all():
            assert box.bounding_box()["width"] < 400
        page.evaluate("document.querySelector('.scroll').scrollLeft = 200")
        name, beside = (page.locator(f"#run-{EI} td:nth-child({i})").bounding_box() for i in (1, 2))
        assert name["x"] + name["width"] == pytest.approx(beside["x"])  # it gives way


def test_no_two_ticked_runs_look_alike(browser: Any, tmp_path: Path) -> None:
    needed = "sft-sparse-tiny-pretrained-s0"
    names = [f"ei-sparse-tiny-sft-s{seed}" for seed in range(31)]
    for name in (needed, *names):
        make_run(tmp_path, name, lines=['{"step": 1, "ei/loss": 1.5}'])  # no line, one point
    members = [Member(needed, None), *(Member(name, [], [needed]) for name in names)]
    with opened(browser, page_of(tmp_path, members)) as page:
        looks = page.evaluate(
            "document.querySelector('.chart').data.map(line =>"
            " [line.name, line.line.color, line.line.dash, line.marker.symbol])"
        )
        assert [look[0] for look in looks] == names[:30]
        assert len({tuple(look[1:]) for look in looks}) == 30
        assert len({(look[1], look[3]) for look in looks}) == 30
        page.select_option("#by", "reward")
        assert page.locator(".legend").inner_text().strip() == "sparse"


def test_one_run_against_another(browser: Any, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    right = {"ei": drawn.random(500) < 0.45, "ppo": drawn.random(500) < 0.55}
    right["rcrl"] = right["ppo"] ^ (drawn.random(500) < 0.02)
    members = []
    for algorithm, values in right.items():
        name = f"{algorithm}-sparse-tiny-sft-s0"
        after = {"after": {"maj@1": (values.mean(), 0.0, 1.0)}}
        correct = {f"q{i}": bool(value) for i, value in enumerate(values)}
        if algorithm == "rcrl":  # in another order
            correct = dict(reversed(correct.items()))
        make_run(tmp_path, name, evaluations=after, correct=correct)
        members.append(Member(name, [f"algorithm={algorithm}"]))
    make_run(
        *(tmp_path, "sft-sparse-tiny-pretrained-s0"),
        evaluations={"after": {"maj@1": (0.5, 0.0, 1.0)}},
        correct={"other": True, "questions": False},
    )
    members.append(Member("sft-sparse-tiny-pretrained-s0", ["algorithm=sft"]))
    with opened(browser, page_of(tmp_path, members)) as page:
        page.select_option("#against", "ei-sparse-tiny-sft-s0")
        (column,) = [
            i
            for i, head in enumerate(page.locator("#runs th").all_inner_texts(), 1)
            if head == "against ei-sparse-tiny-sft-s0"
        ]
        for algorithm in ("ppo", "rcrl"):
            cell = page.locator(f"#run-{algorithm}-sparse-tiny-sft-s0 td:nth-child({column})")
            expected = paired_difference(*(right[each].astype(float) for each in ("ei", algorithm)))
            value, low, high = map(float, re.findall(r"-?[\d.]+", cell.inner_text()))
            assert value == round(100 * expected.value, 1)
            assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1.0)
            assert cell.locator("b").count() == expected.is_established() == 1
        for other in ("ei-sparse-tiny-sft-s0", "sft-sparse-tiny-pretrained-s0"):
            assert page.inner_text(f"#run-{other} td:nth-child({column})") == ""


def test_four_questions_gained_and_none_lost_establish_nothing(
    browser: Any, tmp_path: Path
) -> None:
    members = []
    for algorithm, right in (("ei", 0), ("ppo", 4), ("rcrl", 6)):
        name = f"{algorithm}-sparse-tiny-sft-s0"
        correct = {f"q{i}": i < right for i in range(100)}
        make_run(
            tmp_path, name, evaluations={"after": {"maj@1": (right / 100, 0, 1)}}, correct=correct
        )
        members.append(Member(name, [f"algorithm={algorithm}"]))
    with opened(browser, page_of(tmp_path, members)) as page:
        page.select_option("#against", "ei-sparse-tiny-sft-s0")
        heads = page.locator("#runs th").all_inner_texts()
        column = 1 + heads.index("against ei-sparse-tiny-sft-s0")
        bold = {
            algorithm: page.locator(
                f"#run-{algorithm}-sparse-tiny-sft-s0 td:nth-child({column}) b"
            ).count()
            for algorithm in ("ppo", "rcrl")
        }
        assert bold == {"ppo": 0, "rcrl": 1}  # p = 2/16 and 2/64


def test_the_second_plot_is_of_most_runs(browser: Any, tmp_path: Path) -> None:
    lines = {"ei": "ei/loss", "ppo": "pg/policy_loss"}
    names = ["ei-dense-tiny-sft-s0", "ppo-dense-tiny-sft-s0", "ppo-dense-tiny-sft-s1"]
    for name in names:
        metric = lines[name.partition("-")[0]]
        values = f'"{metric}": 1.5, "eval/validation_maj@1": 0.5, "time/seconds": 1.0'
        make_run(tmp_path, name, lines=[f'{{"step": 1, {values}}}'])
    with opened(browser, page_of(tmp_path, [Member(name, []) for name in names])) as page:
        chosen = page.evaluate("[...document.querySelectorAll('.plot select')].map(s => s.value)")
        assert chosen == ["eval/validation_maj@1", "pg/policy_loss"]


def test_states_are_coloured_as_on_a_terminal(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    runs = [RunData(verdict, [], state=verdict) for verdict in get_args(Verdict)]
    file.write_text(html("t", "python train.py", "", "", runs, "Slurm is silent."))
    with opened(browser, file) as page:
        assert page.inner_text("#note") == "Slurm is silent."
        colours = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#states .state')].map(one =>"
            " [one.textContent.slice(2), getComputedStyle(one).color]))"
        )
    assert list(colours) == list(get_args(Verdict))
    pairs = {(colours[verdict], COLOURS.get(verdict, "red")) for verdict in get_args(Verdict)}
    assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs})


def test_an_estimate_without_its_interval(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, EI, evaluations={"after": {"maj@1": (0.5, 0.0, 1.0)}})
    values = {"estimates": {"maj@1": {"value": 0.5, "n": 4}}}
    (run.evaluation / "after" / "metrics.json").write_text(json.dumps(values))
    with opened(browser, page_of(tmp_path, [Member(EI, [])])) as page:
        assert matrices(page) == ["tiny · stories dense ei 50.0% [?, ?]"]
