"""Arrays of jobs: which job sbatch made, and what a shell's variables may say of it."""

import os

import pytest
from submitit.core.utils import FailedSubmissionError

from reasonrl.sweep.array import Executor, only_asking_for


@pytest.mark.parametrize(
    ("printed", "id"),
    [
        ("17\n", "17"),
        (b"17;cluster\n", "17"),
        ("Welcome. Checking job 512 of your project ... OK\n17\n", "17"),
        ("Welcome.\nSubmitted batch job 17\n", "17"),  # by a site's sbatch, deaf to --parsable
    ],
)
def test_the_id_of_a_job_is_the_last_that_sbatch_says(printed: str | bytes, id: str) -> None:
    assert Executor._get_job_id_from_submission_command(printed) == id


@pytest.mark.parametrize("printed", ["", "job 512 is refused\n"])
def test_what_names_no_job_is_an_error(printed: str) -> None:
    with pytest.raises(FailedSubmissionError, match="no job id"):
        Executor._get_job_id_from_submission_command(printed)


def test_a_shells_variables_count_only_where_the_options_leave_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        "SBATCH_ACCOUNT": "reasoning",
        "SBATCH_EXPORT": "NONE",
        "SBATCH_PARTITION": "low",
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_NO_REQUEUE": "1",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_MEM_PER_CPU": "500",
        "SLURMD_NODENAME": "n1",
    }
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with only_asking_for({"partition", "time"}):
        left = {name for name in os.environ if name.startswith(("SLURM", "SBATCH"))}
    assert left == {"SBATCH_ACCOUNT", "SBATCH_EXPORT", "SLURM_CONF", "SLURMD_NODENAME"}
    assert given.items() <= os.environ.items()
