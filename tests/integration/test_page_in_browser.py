"""A sweep's page as people use it: in a real browser, which is kept off the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasonrl.dashboard import main
from reasonrl.sweep.manifest import Member
from tests.unit.fake_sweep import make_run, make_sweep

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed")

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
        '{"step": 0, "ppo/rollouts": 0, "eval/validation_maj@1": 0.2}',
        '{"step": 0, "ppo/rollouts": 64, "rollout/correct": 0.123456789012345678}',
        '{"step": 4, "ppo/approx_kl": 5e-324}',
        '{"step": 4, "ppo/rollouts": 64, "eval/validation_maj@1": 0.6}',
        '{"step": 8, "ppo/rollouts": 128, "eval/validation_maj@1": null}',
        '{"step": 12, "ppo/rollouts": 192, "eval/validation_maj@1": 0.8999999999999999}',
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
    make_run(outputs, EI, lines=LINES[EI], evaluations={"after": after}, correct=right, text=EVIL)
    make_run(outputs, PPO, lines=LINES[PPO], evaluations={"after": {"maj@1": (0.095, 0.05, 0.125)}})
    make_run(outputs, FAILED, state="failed", error=f"ValueError: {EVIL}")
    make_run(outputs, WAITING, state=None)
    members = [Member(SFT, None), Member(EI, [f"+note={EVIL}"], [SFT])]
    members += [Member(name, ["algorithm=ppo"], [SFT]) for name in (PPO, FAILED, WAITING)]
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
    """Freshly opened. Whatever a test does, nothing may go wrong or ask for anything."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
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
    as_given = [SFT, EI, PPO, FAILED, WAITING]
    assert listed(page) == as_given
    heading = page.locator("#runs th", has_text="after maj@1")
    heading.click()  # the best first, as a number; runs without it last
    assert listed(page) == [EI, SFT, PPO, FAILED, WAITING]
    heading.click()
    assert listed(page) == [PPO, SFT, EI, FAILED, WAITING]
    page.locator("#runs th", has_text="name").click()
    assert listed(page) == sorted(as_given)


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


def test_the_table_tells_what_became_of_the_runs(page: Any) -> None:
    def cell(run: str, column: int) -> str:
        return page.inner_text(f"#run-{run} td:nth-child({column})")

    headings = page.locator("#runs th").all_inner_texts()
    assert headings == [
        *("name", "state", "after maj@1", "gain maj@1", "before maj@1", "after maj@4"),
        *("algorithm", "reward", "model", "init", "dataset", "seed", "attempt", "overrides"),
    ]
    assert cell(EI, 3) == "90.0% [80.0, 100.0]"
    assert cell(EI, 4).startswith("50.0% [")  # ten of twenty more
    assert page.locator(f"#run-{EI} td:nth-child(4) b.right").count() == 1
    assert cell(EI, 5) == "10.0% [0.0, 20.0]"
    assert [cell(EI, column) for column in range(7, 14)] == [
        *("ei", "dense", "tiny", "sft", "stories", "0", "2"),
    ]
    assert cell(EI, 14) == f"+note={EVIL}"
    assert cell(SFT, 14) == "needed by others"
    assert cell(FAILED, 2) == f"failed\nValueError: {EVIL}"
    assert (cell(WAITING, 2), cell(WAITING, 13)) == ("to do", "")
    states = page.locator("#states .state").all_inner_texts()
    assert states == ["3 done", "1 failed", "1 to do"]


def test_the_matrix(page: Any) -> None:
    tables = [table.split("\n") for table in page.locator("#matrices > div").all_inner_texts()]
    assert [" ".join(" ".join(table).split()) for table in tables] == [
        "tiny · stories dense sparse no reward ei 90.0% [80.0, 100.0] "
        "ppo 9.5% [5.0, 12.5] failed sft 10.0% [0.0, 20.0]",
        "small · stories sparse rcrl to do",
    ]


def test_completions_are_text(page: Any) -> None:
    page.click(f"#run-{EI} td.name button")
    assert page.locator("tr.details pre").count() == 8
    assert page.locator("tr.details pre").first.inner_text() == EVIL
    row = page.locator("tr.details .completions tr")
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
