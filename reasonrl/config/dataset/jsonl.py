"""The settings of a dataset of one's own: see ``reasonrl.problems.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reasonrl.config.base import require, require_one_of
from reasonrl.config.dataset.base import DatasetConfig

# How each grader that may be chosen has an answer written.
FORMS = {"strict": "#### {}", "boxed": "\\boxed{{{}}}", "exact": "#### {}", "choice": "#### {}"}
FIELDS = ("question", "answer", "solution", "id")
NEEDED = ("question", "answer")
HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class JSONLConfig(DatasetConfig):
    """Problems of one's own, in files, a folder or a dataset of the Hugging Face hub."""

    subset: str | None  # the configuration of a dataset on the hub
    # The name of the field that holds each of FIELDS; None: there is none.
    fields: dict[str, str | None]
    # The file of each split, or its name on the hub; None: that of the split's own name.
    files: dict[str, str | None]
    # Where a split has no file: how many of the training problems it gets, or below 1 their share.
    held_out: dict[str, float]
    # What reads and compares its answers: strict, boxed, exact or choice.
    grader: str = field(default="strict", kw_only=True)  # type: ignore[misc]  # others' is fixed

    splits = ("train", "validation", "test")
    shows_examples = True

    @property
    def local(self) -> bool:
        return Path(str(self.path)).exists()

    @property
    def has_solutions(self) -> bool:
        return self.fields["solution"] is not None

    def check(self) -> None:
        super().check()
        require(
            self.path is not None,
            f"dataset.path must name the file or folder of dataset={self.name}, or a dataset on "
            "the Hugging Face hub; got dataset.path=null. Pass dataset.path=FILE.",
        )
        require_one_of("dataset.grader", self.grader, FORMS)
        for key, known in (("fields", FIELDS), ("files", self.splits), ("held_out", HELD_OUT)):
            given = getattr(self, key)
            for name in given:
                require_one_of(f"a key of dataset.{key}", name, known)
            for name in known:
                require(name in given, f"dataset.{key}.{name} must be set; got none.")
        for name in NEEDED:
            require(
                self.fields[name] is not None,
                f"dataset.fields.{name} must name a field; got null.",
            )
        for name, held_out in self.held_out.items():
            require(
                0 < held_out < 1 or (held_out >= 1 and held_out == int(held_out)),
                f"dataset.held_out.{name} must be a share between 0 and 1, or a whole number of "
                f"problems; got {held_out:g}.",
            )
