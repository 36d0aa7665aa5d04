"""Which label a return is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reasonrl.config.schema import TrainConfig

NUMBERS = ["algorithm.labels=null", "algorithm.thresholds=[]"]
THREE = ["algorithm.labels=[low,middle,high]", "algorithm.thresholds=[0.25,1]"]


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        ([], {0.0: "[BAD]", 0.49: "[BAD]", 0.5: "[GOOD]", 1.0: "[GOOD]"}),
        (THREE, {0.0: "low", 0.24: "low", 0.25: "middle", 0.99: "middle", 1.0: "high"}),
        (NUMBERS, {0.0: "[0.0]", 0.04: "[0.0]", 0.06: "[0.1]", 0.125: "[0.1]", 1 / 3: "[0.3]",
                   0.375: "[0.4]", 0.5: "[0.5]", 0.05: "[0.1]", 0.25: "[0.3]",
                   0.75: "[0.8]", 0.94: "[0.9]", 0.96: "[1.0]", 1.0: "[1.0]"}),
    ],
)  # fmt: skip
def test_the_label_of_a_return(
    overrides: list[str], labels: dict[float, str], configure: Callable[..., TrainConfig]
) -> None:
    config: Any = configure("algorithm=rcrl", *overrides).algorithm
    texts = config.label_texts
    assert {value: texts[config.label_number(value)] for value in labels} == labels


def test_the_labels_from_the_worst(configure: Callable[..., TrainConfig]) -> None:
    config: Any = configure("algorithm=rcrl", *NUMBERS).algorithm
    assert config.label_texts == [
        "[0.0]", "[0.1]", "[0.2]", "[0.3]", "[0.4]", "[0.5]",
        "[0.6]", "[0.7]", "[0.8]", "[0.9]", "[1.0]",
    ]  # fmt: skip
    default: Any = configure("algorithm=rcrl").algorithm
    assert default.label_texts == ["[BAD]", "[GOOD]"]
