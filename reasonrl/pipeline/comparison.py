"""The runs of a sweep side by side, once it has ended."""

from __future__ import annotations

from collections.abc import Mapping

from reasonrl.grading.estimates import Estimate
from reasonrl.pipeline.overrides import differing
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.results import Result, result_of
from reasonrl.report.budget import NOT_COMPARED, budget_of, unequal
from reasonrl.report.tables import budgets_table, comparison_table
from reasonrl.runs.provenance import differences, hardware, software
from reasonrl.util.progress import Progress, output

METRIC = "maj@1"
MAX_ROWS = 40  # of more there is the sweep's page


def show_comparison(plans: Mapping[tuple[str, ...], Plan]) -> None:
    """Prints a table of those finished runs that make a policy.

    A second table has their budgets. Lines below say in what these differ, and which runs were made
    with other hardware or code.

    plans: by the overrides that the command gave each run.
    """
    progress = Progress()
    policies = {o: p for o, p in plans.items() if p.config.algorithm.makes == "policy"}
    if 1 < len(policies) <= MAX_ROWS:
        results = {o: result_of(planned, progress) for o, planned in policies.items()}
        protocols = sorted({planned.config.protocol for planned in policies.values()})
        names = differing(results)
        if len(protocols) > 1:
            names = [[*n, p.config.protocol] for n, p in zip(names, policies.values(), strict=True)]
        given = {
            " ".join(name): budget_of(planned.run, planned.config)
            for name, planned in zip(names, policies.values(), strict=True)
        }
        differ = unequal(given)
        rows = dict(zip(map("\n".join, names), compare(results, apart=bool(differ)), strict=True))
        title = f"comparison, by maj@1 on {', '.join(protocols)}; gains are paired"
        output.print(comparison_table(title, rows))
        if any(given.values()):
            output.print(budgets_table(given))
        if differ:
            said = NOT_COMPARED.format("; ".join(differ.values()))
            output.print(said, markup=False, highlight=False)
        files = [planned.run.provenance for planned in policies.values()]
        made_with = [hardware(file) | software(file) for file in files]
        if differs := differences(dict(zip(map(" ".join, names), made_with, strict=True))):
            output.print(differs, markup=False, highlight=False)


def compare(
    results: Mapping[tuple[str, ...], Result], *, apart: bool = False
) -> list[dict[str, Estimate]]:
    """A row of estimates for each run, in order.

    It holds the run's accuracy, its gains on the policy it started from, its conditioning gap if it
    has one, and its gain on the first of the runs if both have answered the same problems. All
    differences are paired.

    apart: leaves out the gain on the first of the runs.
    """
    first, *_ = results.values()
    rows = []
    for result in results.values():
        after = result.after
        estimates, gains = after.estimates(), after.gain_on(result.before)
        most_samples = [name for name in gains if name.startswith("pass@")][-1]
        row = {
            METRIC: estimates[METRIC],
            "gain on: its start": gains[METRIC],
            f"{most_samples}: gain on start": gains[most_samples],
        }
        if result.worst is not None:
            row["conditioning: gap"] = after.gain_on(result.worst)[METRIC]
        asked = (after.problem_ids, result.problems)
        if not apart and result is not first and asked == (first.after.problem_ids, first.problems):
            row["gain on: the first run"] = after.gain_on(first.after)[METRIC]
        rows.append(row)
    return rows
