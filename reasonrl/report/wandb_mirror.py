"""Weights & Biases as a mirror of a run's folder, which stays the record. No torch is imported.

Line n of metrics.jsonl is W&B's step n, and W&B takes no step twice. The number of steps that W&B
has of a run says from which line on to send: online its server knows it, and offline it is 0, as
every attempt writes W&B's folder anew. So W&B has each line once, however often the run was killed
and at whatever moments. The charts' x axis is the line's own ``step``.

Offline, W&B's folder holds exactly metrics.jsonl. Online, a line that was sent, lost to a kill and
computed again keeps its first version. On a CPU the second version is the same but for ``time/``.
On a GPU its last digits may differ; and if PPO then ends an iteration at another step, the lines
that were lost are a mixture of both versions.

Nothing here stops a run: whatever W&B raises ends the mirror of this attempt, with one warning.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from reasonrl.config.identity import decisive, identity
from reasonrl.config.schema import TrainConfig
from reasonrl.config.tracking.wandb import WandbConfig
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.preemption import Preempted
from reasonrl.runs.process import ALONE, Process
from reasonrl.runs.result import evaluation_files
from reasonrl.util.atomic import remove_folder

logger = logging.getLogger(__name__)

MAX_TAG, MAX_NAME = 64, 128  # characters that W&B takes
FOLDER = "wandb"  # in the run's folder; W&B names it so
NUM_COMPLETIONS = 64  # in the table
VALIDATION = "rollouts/validation.parquet"  # the completions of a run that makes no policy
COLUMNS = ("problem_id", "text", "answer", "correct", "score")
PICTURES = {
    "learning_curve": "learning_curve.png",
    "calibration": "evaluation/validation/calibration.png",
}


class Mirror:
    """Tells W&B of one attempt at a run, or nobody if there is no W&B run. It never raises."""

    def __init__(self, run: RunFolder, wandb_run: Any | None) -> None:
        self._run, self._wandb = run, wandb_run
        self._known = wandb_run.starting_step if wandb_run else 0  # what W&B has of the lines
        self._lines = self._bytes = 0  # of metrics.jsonl, read so far

    @property
    def works(self) -> bool:
        """Whether W&B is told anything: it isn't switched off, and nothing has failed so far."""
        return self._wandb is not None

    def follow(self) -> None:
        """Sends the lines of metrics.jsonl that W&B hasn't got.

        `MetricsLog` calls this after each line, as its ``on_line``.
        """
        if self._wandb and self._run.metrics.exists():
            with self._giving_up_on_errors():
                with open(self._run.metrics, "rb") as file:
                    file.seek(self._bytes)
                    new = file.readlines()
                for line in new:
                    self._log(json.loads(line))
                    self._bytes += len(line)

    def complete(self, questions: Mapping[str, str]) -> None:
        """Adds what there is at a run's end: evaluations, pictures, and a table of completions.

        questions: the completions' questions, by the ids of their problems.
        """
        self.follow()
        if self._wandb:
            with self._giving_up_on_errors():
                self._wandb.summary.update(_evaluations(self._run))
                media = _pictures(self._run) | self._table_of_completions(questions)
                if media:
                    self._log(media)

    def close(self, error: BaseException | None) -> None:
        """Waits, but not for ever, until W&B has everything.

        error: what ended the attempt, if anything did.
        """
        if self._wandb:
            with self._giving_up_on_errors():
                if isinstance(error, Preempted):
                    self._wandb.mark_preempting()
                self._wandb.finish(exit_code=1 if error else 0)

    def _log(self, metrics: Mapping[str, Any]) -> None:
        assert self._wandb is not None
        if self._lines >= self._known:
            self._wandb.log(metrics, step=self._lines, commit=True)
        self._lines += 1

    def _table_of_completions(self, questions: Mapping[str, str]) -> dict[str, Any]:
        import wandb

        after = evaluation_files(self._run).get("after")
        file = after.with_name("greedy.parquet") if after else self._run.path / VALIDATION
        if not file.exists():
            return {}
        rows = pq.read_table(file, columns=list(COLUMNS)).slice(0, NUM_COMPLETIONS).to_pylist()
        data = [[questions.get(row["problem_id"]), *row.values()] for row in rows]
        table = wandb.Table(columns=["question", *COLUMNS], data=data)
        # Else W&B would keep it a second time, as an artifact that it stages in the home folder.
        table.bind_to_run(self._wandb, "completions", self._lines)
        return {"completions": table}

    @contextmanager
    def _giving_up_on_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.warning("W&B: %s. The run goes on without; its folder has all.", _line(error))
            self._wandb = None


@contextmanager
def mirrored(run: RunFolder, config: TrainConfig, process: Process = ALONE) -> Iterator[Mirror]:
    """A mirror of an attempt at a run that `running` has begun, as ``tracking`` asks for.

    process: this one of the processes that make the run together; only the main one tells W&B.
    """
    start = TRACKERS[config.tracking.name]
    mirror = Mirror(run, start(run, config, config.tracking) if process.is_main else None)
    try:
        yield mirror
    except BaseException as error:
        mirror.close(error)
        raise
    mirror.close(None)


def wandb_id(run: RunFolder, config: TrainConfig) -> str:
    """``1a2b3c4d-20261122T202406``: the run's identity, and when its folder was begun.

    All attempts at a run share this id. A run that was deleted and made again has another, and so
    has the same run made by someone else: other code may have made other numbers.
    """
    begun = str(_attempts(run)[0]["started"]).partition("+")[0]
    return f"{identity(decisive(config))}-{begun.replace('-', '').replace(':', '')}"


def logged_in() -> bool:
    """Whether W&B finds a login in the environment or in ~/.netrc; this needs no network."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    try:
        login = wbauth.authenticate_session(
            host=host, source="reasonrl", prompt=False, update_session=False
        )
    except wandb.Error as error:  # a text that can't be a key
        logger.warning("W&B: %s", _line(error))
        return False
    return login is not None


def _start(run: RunFolder, config: TrainConfig, tracking: WandbConfig) -> Any | None:
    """Starts W&B's run; None without the package, if W&B is switched off, or if it fails."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # crash reports to its makers
    try:
        import wandb
    except ImportError:
        logger.warning("W&B: pip install wandb to have it, or pass tracking=none.")
        return None
    try:
        logging.getLogger("wandb").propagate = False  # it has a log of its own
        mode = _mode(tracking)
        if mode == "disabled":
            return None
        try:
            started = _init(run, config, tracking, mode)
        except wandb.Error as error:
            if mode == "offline":
                raise
            logger.warning("W&B: %s. The run goes on offline.", _line(error))
            wandb.teardown()  # its service still holds the id
            started = _init(run, config, tracking, "offline")
        logger.info("W&B: %s", run.path / FOLDER if started.offline else started.url)
        return started
    except Exception as error:
        logger.warning("W&B: %s. The run goes on without.", _line(error))
        return None


def _mode(tracking: WandbConfig) -> str:
    mode = tracking.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or mode
    if mode not in ("auto", "online"):
        return mode
    if logged_in():
        return "online"
    if mode == "online":  # W&B would ask for a login, and wait for ever
        logger.warning("W&B: mode=online must have a login; got none. The run goes on offline.")
    return "offline"


def _init(run: RunFolder, config: TrainConfig, tracking: WandbConfig, mode: Any) -> Any:
    """Starts W&B's run with all that it would collect by itself switched off, but for the load.

    The environment, command lines, paths, code and what is printed are no one else's business.
    """
    import wandb

    if (run.path / FOLDER).exists():
        remove_folder(run.path / FOLDER)  # an earlier attempt's, whose lines are sent again
    settings = wandb.Settings(
        init_timeout=tracking.timeout_seconds,
        finish_timeout=tracking.timeout_seconds,
        x_transaction_log_flush_interval=1.0,
        reinit="create_new",
        silent=True,
        console="off",
        program=Path(sys.argv[0]).name,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )
    attempts = _attempts(run)
    provenance = {key: value for key, value in attempts[-1].items() if key != "command"}
    unread = config.algorithm.reads_reward == "nothing"
    reward = [] if unread else [config.reward.name]
    parts = [*reward, config.model.name, config.init.name, config.dataset.name]
    known = {
        **decisive(config),
        "identity": identity(decisive(config)),
        "protocol": run.protocol,
        "attempt": len(attempts),
        "provenance": provenance,
    }
    known["model"]["path"] = config.model.path  # for people, though it doesn't count
    started = wandb.init(
        dir=run.path.resolve(),  # its service may have begun in another folder
        mode=mode,
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group and _within(MAX_NAME, tracking.group),
        job_type=config.algorithm.name,
        tags=sorted({_within(MAX_TAG, part) for part in (*parts, *tracking.tags)}),
        id=wandb_id(run, config),
        name=_within(MAX_NAME, run.path.name),
        config=without_home(known),
        allow_val_change=True,
        resume="allow" if mode == "online" else None,
        settings=settings,
    )
    started.define_metric("step", hidden=True)
    # step_sync would write the last step into the row of pictures too.
    started.define_metric("*", step_metric="step", step_sync=False)
    return started


def _within(limit: int, text: str) -> str:
    """The text, without its middle where it has more characters than W&B takes."""
    if len(text) <= limit:
        return text
    start = (limit - 1) // 2
    return f"{text[:start]}…{text[len(text) - (limit - 1 - start) :]}"


def _attempts(run: RunFolder) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = json.loads(run.provenance.read_bytes())["attempts"]
    return attempts


def _evaluations(run: RunFolder) -> dict[str, float]:
    """The run's estimates for W&B's summary.

    Those by the protocol that W&B's config names are ``eval/after_maj@1``, ``eval/gain_maj@1`` and
    so on. Those by other protocols are ``eval/test-k96-t0.7/after_maj@1`` and so on.
    """
    return {
        f"eval/{kind}_{name}": estimate["value"]
        for kind, file in sorted(evaluation_files(run).items())
        for name, estimate in json.loads(file.read_bytes())["estimates"].items()
    }


def _pictures(run: RunFolder) -> dict[str, Any]:
    import wandb

    files = {name: run.path / file for name, file in PICTURES.items()}
    return {name: wandb.Image(str(file)) for name, file in files.items() if file.exists()}


def without_home(value: Any) -> Any:
    """The value with ``~`` for the home folder, which has a person's name in it, in every text."""
    if isinstance(value, Mapping):
        return {key: without_home(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_home(part) for part in value]
    home = str(Path.home())
    if not isinstance(value, str) or home == os.sep:
        return value
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# By the option's name, the function that starts W&B's run of an attempt, or gives None.
TRACKERS: dict[str, Callable[[RunFolder, TrainConfig, Any], Any | None]] = {
    "none": lambda *_: None,
    "wandb": _start,
}
