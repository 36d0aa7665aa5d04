"""Points that are composed from parts already read are those that Hydra composes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.reasonrl_launcher import Composer
from tests.helpers.configs import ROOT

POINTS = [
    [],
    ["seed=3"],
    ["algorithm=ppo", "reward=dense"],
    ["algorithm=ppo", "algorithm.iterations=7", "seed=1"],
    ["algorithm.rounds=7", "algorithm=ei", "algorithm.rounds=2"],
    ["model=13b", "model.resources.memory_gb=5"],
    ["algorithm.num_samples_per_prompt=[4,8]"],
    ["model.resources={gpus: 3, hours: 1.5}"],
    ["algorithm.epochs=2", "algorithm={epochs: 9}"],
    ["init=ei", "init.run=null"],
    ["experiment=rcrl-label-ratio", "algorithm.solution_ratio=inf"],
    ["+sampler@other=transformers"],
    ["+dataset.note=x", "++seed=5"],
    ["~tracking"],
    ["~evaluation.temperature"],
    ["~seed=0"],
    ["dataset.prompt='a b=c, \"d\"'"],
    ["model.path='/a/ü-b/c=d'"],
    ["runtime.outputs=${model.name}"],
    ["hydra.launcher.mem_gb=7", "hydra/launcher=sweep"],
    ["hydra.launcher.setup=[module load cuda]"],
    ["+hydra.launcher.additional_parameters.mail-type=FAIL"],
]
WRONG = [
    ["algorithm=nothing"],
    ["+experiment=rcrl-label-ratio"],
    ["sampler@other=transformers"],
    ["model.path=/a/ü-b/c=d"],  # unquoted
    ["nothing=1"],
    ["algorithm.nothing=1"],
    ["seed@here=1"],
    ["+seed=1"],
    ["~nothing"],
    ["hydra.launcher.mem_gb=many"],
]


@pytest.fixture
def loader() -> ConfigLoader:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def master(loader: ConfigLoader, *overrides: str) -> DictConfig:
    config: DictConfig = loader.load_configuration("train", list(overrides), RunMode.MULTIRUN)
    return config


def composer(loader: ConfigLoader, config: DictConfig) -> Composer:
    return Composer(HydraContext(loader, callbacks=None), config)  # type: ignore[arg-type]


def plain(config: DictConfig) -> object:
    """All but how it came about."""
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    for key in ("overrides", "job"):
        del values["hydra"][key]
    return values


@pytest.mark.slow
def test_a_point_is_as_hydra_composes_it(loader: ConfigLoader) -> None:
    config = master(loader, "hydra.launcher.timeout_min=9")
    compose = composer(loader, config)
    for overrides in POINTS * 2:  # the second time from what was read at the first
        expected = plain(loader.load_sweep_config(config, overrides))
        assert plain(compose(overrides)) == expected, overrides


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_what_hydra_refuses_is_refused_in_its_words(
    loader: ConfigLoader, overrides: list[str]
) -> None:
    config = master(loader)
    with pytest.raises(HydraException) as expected:
        loader.load_sweep_config(config, overrides)
    with pytest.raises(HydraException) as found:
        composer(loader, config)(overrides)
    assert str(found.value) == str(expected.value)


def test_files_are_read_once_for_each_choice(
    loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, read = master(loader), []
    load = loader.load_sweep_config

    def count(master: DictConfig, overrides: list[str]) -> DictConfig:
        read.append(overrides)
        return load(master, overrides)

    monkeypatch.setattr(loader, "load_sweep_config", count)
    compose = composer(loader, config)
    found = [compose([f"algorithm={a}", f"seed={s}"]) for a in ("ei", "ppo") for s in range(3)]
    assert read == [["algorithm=ei"], ["algorithm=ppo"]]
    assert [(c.algorithm.name, c.seed) for c in found] == [
        *[("ei", seed) for seed in range(3)],
        *[("ppo", seed) for seed in range(3)],
    ]


class Recorder:
    """A launcher that only keeps what it is asked for."""

    def launch(self, points: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        assert initial_job_idx == 0
        self.points = points
        return []


def test_the_sweeper_makes_every_combination_and_writes_nothing(
    loader: ConfigLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra_plugins.reasonrl_launcher import MatrixSweeper  # Hydra has loaded it anew

    monkeypatch.chdir(tmp_path)
    sweeper = MatrixSweeper(max_batch_size=None, params={"algorithm.epochs": "1,2", "seed": "9"})
    sweeper.hydra_context = HydraContext(loader, callbacks=None)  # type: ignore[arg-type]
    sweeper.launcher = recorder = Recorder()  # type: ignore[assignment]
    assert sweeper.sweep(["seed=range(0,2)", "model=7b"]) == []
    assert recorder.points == [
        ["algorithm.epochs=1", "seed=0", "model=7b"],
        ["algorithm.epochs=1", "seed=1", "model=7b"],
        ["algorithm.epochs=2", "seed=0", "model=7b"],
        ["algorithm.epochs=2", "seed=1", "model=7b"],
    ]
    assert list(tmp_path.iterdir()) == []
