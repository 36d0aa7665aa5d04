"""The settings of datasets, by the name of the option."""

from __future__ import annotations

from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.dataset.gsm8k import GSM8KConfig
from reasonrl.config.dataset.jsonl import JSONLConfig
from reasonrl.config.dataset.math import MATHConfig
from reasonrl.config.dataset.stories import StoriesConfig
from reasonrl.config.dataset.svamp import SVAMPConfig

DATASETS: dict[str, type[DatasetConfig]] = {
    "stories": StoriesConfig,
    "gsm8k": GSM8KConfig,
    "svamp": SVAMPConfig,
    "math": MATHConfig,
    "jsonl": JSONLConfig,
}
