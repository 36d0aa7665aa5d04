"""Configurations: every file on disk composes, every rule refuses, identities are what they say."""

import re
from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from reasonrl.config.identity import decisive, prerequisites, readable_name, training_set
from reasonrl.config.resolve import resolve, resolve_evaluation, with_homes
from reasonrl.config.reward.sparse import SPARSE
from reasonrl.config.schema import EvaluateConfig, TrainConfig
from reasonrl.util.errors import UserError
from tests.helpers.behaviour import golden
from tests.helpers.configs import ROOT
from tests.helpers.rules import RULES

CONF = ROOT / "conf"
FILES = {file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml")}
ENTRY_POINTS = {"train", "evaluate"}
PARTS = {  # what the others include
    "learner/default",
    "learner/orm",
    "learner/sorm",
    "policy_gradient/default",
    "hydra/help/train",
    "hydra/help/evaluate",
    "hydra/launcher/sweep",
    "hydra/sweeper/optuna",
    *(file for file in FILES if file.startswith(("by_scale/", "by_budget/"))),
}
OPTIONS = sorted(FILES - ENTRY_POINTS - PARTS)
EVALUATE_GROUPS = {"model", "dataset", "prompt", "sampler"}
NEEDS = {
    "init/run": ["init.run=outputs/runs/any"],
    "dataset/jsonl": ["dataset.path=any.jsonl", "init=pretrained"],
    "reward/function": ["reward.path=any.py:score"],
}


def composed(*overrides: str, name: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def train(*overrides: str) -> TrainConfig:
    return resolve(composed(*overrides))


def evaluation(*overrides: str) -> EvaluateConfig:
    return resolve_evaluation(composed(*overrides, name="evaluate"))


def test_every_file_is_seen():
    on_disk = [p for p in CONF.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(on_disk) == len(FILES)  # nothing but YAML, no two of a name
    assert len(OPTIONS) + 10 + 6 * 3 + 6 == len(FILES) >= 52
    assert FILES >= ENTRY_POINTS | PARTS
    groups = {option.split("/")[0] for option in OPTIONS}
    assert groups == {
        "model", "init", "algorithm", "reward", "dataset", "prompt", "sampler", "tracking",
        "experiment", "scale", "budget",
    }  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_validates(option: str):
    group, name = option.split("/")
    config = train(f"{group}={name}", *NEEDS.get(option, []))
    if group == "scale":
        assert composed(f"scale={name}").scale.name == name
    elif group not in ("experiment", "budget"):
        assert getattr(config, group).name == name
    if group in EVALUATE_GROUPS:
        assert getattr(evaluation(f"{group}={name}", *NEEDS.get(option, [])[:1]), group) == getattr(
            config, group
        )


def options(group: str) -> list[str]:
    return sorted(option for option in OPTIONS if option.startswith(f"{group}/"))


# Every two options of different groups are together in one of them.
PAIRS = [
    (algorithm, init, f"dataset/{('gsm8k', 'stories', 'svamp')[(i + j) % 3]}")
    for i, algorithm in enumerate(options("algorithm"))
    for j, init in enumerate(options("init"))
]


@pytest.mark.parametrize(("algorithm", "init", "dataset"), PAIRS)
def test_options_combine(algorithm: str, init: str, dataset: str):
    chosen = [option.replace("/", "=") for option in (dataset, algorithm, init)]
    if (algorithm, init) == ("algorithm/sft", "init/sft"):
        with pytest.raises(UserError, match="algorithm=sft must start from other weights"):
            train(*chosen)
    else:
        train(*chosen, *NEEDS.get(init, []))


def test_defaults():
    config = train()
    assert readable_name(config) == "ei-sparse-tiny-sft-stories-s0"
    assert (config.seed, config.evaluation.split) == (0, "test")
    assert isinstance(config.algorithm.learning_rate, float)  # 1e-3 in YAML is a number
    assert evaluation().evaluation.num_samples_per_prompt == 96


def test_readable_name():
    assert readable_name(train("algorithm=sft", "seed=3")) == "sft-tiny-pretrained-stories-s3"
    overrides = ["model=small", "dataset=svamp", "init=run", "init.run=outputs/runs/x"]
    assert readable_name(train(*overrides)) == "ei-sparse-small-run-svamp-s0"


@pytest.mark.parametrize(("broken", "others", "message"), RULES, ids=[rule[0] for rule in RULES])
def test_rules(broken: str, others: list[str], message: str):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        train(*others, broken)
    assert str(error.value) == golden()["rules"][" ".join([*others, broken])]


def test_rules_hold_for_evaluations_too():
    with pytest.raises(UserError, match=re.escape("evaluation.temperature must be above 0")):
        evaluation("evaluation.temperature=0")
    with pytest.raises(
        UserError, match=re.escape("sampler.batch_size must be auto or 1 or more; got 0.")
    ):
        evaluation("sampler.batch_size=0")


def test_a_tilde_is_the_home_folder_wherever_a_path_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ana")
    paths = ["runtime.outputs='~/o'", "model.path='~/m'", "dataset.path='~/d'", "dataset=gsm8k"]
    config = train(*paths, "init=run", "init.run='~/r'", "algorithm=ei")
    assert (config.runtime.outputs, config.model.path) == ("/home/ana/o", "/home/ana/m")
    assert (config.dataset.path, config.init.run) == ("/home/ana/d", "/home/ana/r")
    assert with_homes({"run": None, "predictions": "~/p.jsonl", "reward_model": "~/r"}) == {
        "run": None,
        "predictions": "/home/ana/p.jsonl",
        "reward_model": "/home/ana/r",
    }
    with pytest.raises(UserError, match="path=~nobody-here/m must be a path; there is no such hom"):
        train("model.path='~nobody-here/m'")


def test_no_schema_for_another_option_s_keys():
    with pytest.raises(HydraException, match=r"Could not override 'algorithm\.rounds'"):
        train("algorithm=sft", "algorithm.rounds=3")


@pytest.mark.parametrize(
    "override",
    [
        "model.device=meta",
        "model.num_parameters=null",
        "model.resources.gpus=8",
        "model.resources.nodes=2",
        "model.resources.gpu_gb=141",
        "model.resources.hours=0.5",
        "algorithm.micro_batch_tokens=1",
        "algorithm.checkpoint_layers=true",
        "init.sft.micro_batch_tokens=1",
        "sampler.batch_size=1",
        "runtime.outputs=elsewhere",
        "runtime.threads=1",
        "runtime.checkpoint_seconds=0",
        "tracking=none",
        "tracking.mode=offline",
        "tracking.group=a-sweep",
        "dry_run=true",
        "evaluation.temperature=1.0",
        "evaluation.num_samples_per_prompt=5",
        "evaluation.split=ood",
        "dataset.test_size=7",
        "dataset.reward_train_size=7",  # of Expert Iteration, which learns from train_size
    ],
)
def test_what_does_not_decide_a_result(override: str):
    assert decisive(train(override)) == decisive(train())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rft", {"rounds": 1, "accumulate": True, "max_per_problem": None}),
        ("rest_em", {"rounds": 2, "accumulate": False, "max_per_problem": 10}),
    ],
)
def test_variants_of_expert_iteration(name: str, values: dict[str, object]):
    variant, ei = train(f"algorithm={name}"), train()
    assert (variant.algorithm.name, variant.algorithm.kind, ei.algorithm.kind) == (name, "ei", "ei")
    assert readable_name(variant) == f"{name}-sparse-tiny-sft-stories-s0"
    own = {"name": name, "variant_of": "ei", "temperature": 0.7, **values}
    assert vars(variant.algorithm) == {**vars(ei.algorithm), **own}


RCRL = ["algorithm=rcrl"]
OWN_NUMBERS = ["algorithm.labels=null", "algorithm.thresholds=[]"]


@pytest.mark.parametrize(
    "overrides",
    [
        OWN_NUMBERS,
        ["algorithm.labels=[a,b,c]", "algorithm.thresholds=[0.1,1]"],
        ["algorithm.solution_ratio=inf", "algorithm.step_ratio=0.01"],
        ["algorithm.num_solutions_per_prompt=4", "algorithm.num_continuations=1"],
        ["algorithm.policy=null", "algorithm.solution_ratio=null"],
    ],
)
def test_what_rcrl_may_be(overrides: list[str]):
    assert train(*RCRL, *overrides) != train(*RCRL)


@pytest.mark.parametrize(
    "override", ["algorithm.micro_batch_tokens=1", "algorithm.policy.micro_batch_tokens=1"]
)
def test_what_does_not_decide_what_rcrl_does(override: str):
    one, other = train(*RCRL, override), train(*RCRL)
    assert decisive(one) == decisive(other)
    assert [decisive(first) for first in all_prerequisites(one)] == [
        decisive(first) for first in all_prerequisites(other)
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.policy=null"],
        ["algorithm.policy.rounds=3"],
        ["algorithm.sample.temperature=0.5"],
        ["algorithm.num_solutions_per_prompt=2"],
        ["algorithm.num_continuations=8"],
        ["algorithm.returns=solution"],
        ["algorithm.thresholds=[0.6]"],
        ["algorithm.labels=['[BAD]',good]"],
        OWN_NUMBERS,
        ["algorithm.label_tokens=text"],
        ["algorithm.solution_ratio=null"],
        ["algorithm.step_ratio=1"],
        ["algorithm.shuffle_labels=true"],
        ["algorithm.restart=false"],
        ["reward=dense"],
    ],
)
def test_what_decides_what_rcrl_does(overrides: list[str]):
    assert decisive(train(*RCRL, *overrides)) != decisive(train(*RCRL))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=small",
        "model.path=elsewhere",  # other weights, for all that is known
        "model.compute_dtype=bfloat16",
        "init=pretrained",
        "init.sft.epochs=7",
        "algorithm.temperature=0.51",
        "algorithm.batch_size=17",
        "algorithm.num_samples_per_prompt=[5]",
        "algorithm.restart=false",
        "algorithm.trainable=lora",
        "algorithm.lora_rank=8",
        "init.sft.trainable=lora",
        "dataset.train_size=10",
        "dataset.num_references=10",
        "dataset.prompt='{question}'",
        "dataset.stop=[]",
    ],
)
def test_what_decides_a_result(override: str):
    assert decisive(train(override)) != decisive(train())


def test_settings_that_older_runs_have_not_do_not_count_at_their_defaults():
    kept = decisive(train("algorithm.trainable=lora"))
    assert kept["algorithm"]["trainable"] == "lora"
    for settings in (kept["algorithm"], decisive(train())["algorithm"], kept["init"]["sft"]):
        assert "lora_rank" not in settings
    assert "trainable" not in kept["init"]["sft"]


def test_a_dataset_is_the_same_wherever_it_lies():
    one, other = (train("dataset=gsm8k", f"dataset.path={p}") for p in ("a", "b"))
    assert decisive(one) == decisive(other)
    assert decisive(train("dataset=gsm8k")) == decisive(one)


def test_an_earlier_run_counts_by_its_name():
    one, same, other = (
        train("init=run", f"init.run={p}") for p in ("a/run-1", "b/run-1", "a/run-2")
    )
    assert decisive(one) == decisive(same) != decisive(other)


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["algorithm=ei"], True),
        (["algorithm=ppo"], False),
        (["algorithm=rcrl"], False),
        (["algorithm=sft"], False),
    ],
)
def test_a_threshold_counts_where_completions_are_chosen_by_it(overrides: list[str], counts: bool):
    one, other = (train(*overrides, f"reward.threshold={t}") for t in (1.0, 0.5))
    assert (decisive(one) != decisive(other)) is counts


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["algorithm=sft"], False),
        (["algorithm=ei"], False),
        (["algorithm=ei", "reward=dense"], False),
        # The reward model that is made learns from so many, and one that is there has learnt.
        (["algorithm=ei", "reward=orm"], True),
        (["algorithm=ei", "reward=orm", "reward.run=outputs/runs/x"], False),
        (["algorithm=ei", "reward=sorm", "init=pretrained"], True),
        (["algorithm=ppo"], True),
        (["algorithm=rcrl"], True),
        (["algorithm=orm"], True),
        (["algorithm=sample"], True),
    ],
)
def test_a_number_of_problems_counts_where_some_run_learns_from_it(
    overrides: list[str], counts: bool
):
    one, other = (train(*overrides, f"dataset.reward_train_size={n}") for n in (50, 60))
    assert (decisive(one) != decisive(other)) is counts


def test_supervised_runs_have_no_reward():
    assert "reward" not in decisive(train("algorithm=sft"))
    assert decisive(train())["reward"] == {"name": "sparse", "threshold": 1.0}


@pytest.mark.parametrize(
    ("shared", "ei", "sft"),
    [
        ([], [], []),
        (["seed=3", "model=small", "dataset=gsm8k", "dataset.path=x"], [], []),
        (["evaluation.split=ood", "sampler.batch_size=2"], ["algorithm.rounds=2"], []),
        ([], ["init.sft.epochs=7"], ["algorithm.epochs=7"]),
        ([], ["algorithm.epochs=5", "algorithm.learning_rate=0.1"], []),
    ],
)
def test_init_sft_is_the_run_of_algorithm_sft(shared: list[str], ei: list[str], sft: list[str]):
    """So that it is found where that run was made before, and made once for all that need it."""
    prerequisite = prerequisites(train("algorithm=ei", "init=sft", *shared, *ei))["init"]
    by_itself = train("algorithm=sft", *shared, *sft)
    assert decisive(prerequisite) == decisive(by_itself)
    assert readable_name(prerequisite) == readable_name(by_itself)


def names(config: TrainConfig) -> dict[str, str]:
    return {gives: readable_name(first) for gives, first in prerequisites(config).items()}


def all_prerequisites(config: TrainConfig) -> list[TrainConfig]:
    """What a run needs first, and what that needs, and so on; some more than once."""
    first = list(prerequisites(config).values())
    return [*first, *(earlier for one in first for earlier in all_prerequisites(one))]


def test_what_a_run_needs_first():
    assert prerequisites(train("init=pretrained")) == {}
    assert prerequisites(train("init=run", "init.run=x")) == {}
    assert names(train()) == {"init": "sft-tiny-pretrained-stories-s0"}
    assert names(train("init=ei")) == {"init": "ei-sparse-tiny-sft-stories-s0"}
    assert names(train("init=ei", "init.sft=null")) == {
        "init": "ei-sparse-tiny-pretrained-stories-s0"
    }
    assert names(train("init=ei", "init.sft=null", "init.run=x")) == {
        "init": "ei-sparse-tiny-run-stories-s0"
    }
    assert names(train("algorithm=sample", "init=sft")) == {
        "init": "sft-tiny-pretrained-stories-s0"
    }
    for kind in ("orm", "sorm"):
        steps = {"steps": "steps-tiny-ei-stories-s0"} if kind == "sorm" else {}
        assert names(train(f"algorithm={kind}")) == steps | {
            "init": "ei-sparse-tiny-sft-stories-s0",
            "rollouts": "sample-tiny-ei-stories-s0",
        }
        assert names(train(f"reward={kind}")) == {
            "init": "sft-tiny-pretrained-stories-s0",
            "reward": f"{kind}-tiny-ei-stories-s0",
        }
        # Of the starting policy itself, and of an earlier run.
        assert names(train(f"reward={kind}", "reward.policy=null"))["reward"] == (
            f"{kind}-tiny-sft-stories-s0"
        )
        assert "reward" not in names(train(f"reward={kind}", "reward.run=outputs/runs/x"))
        assert names(train("algorithm=sft", f"reward={kind}")) == {}


def test_what_comes_first_is_the_same_run_whoever_needs_it():
    ei = train()
    orm, sorm = (train(f"algorithm={kind}") for kind in ("orm", "sorm"))
    for kind, model in (("orm", orm), ("sorm", sorm)):
        with_reward = prerequisites(train(f"reward={kind}"))
        assert with_reward["reward"] == model
        assert decisive(prerequisites(model)["init"]) == decisive(ei)
        assert with_reward["init"] == prerequisites(ei)["init"]
    assert prerequisites(orm)["rollouts"] == prerequisites(sorm)["rollouts"]
    assert decisive(prerequisites(orm)["rollouts"]) == decisive(
        train("algorithm=sample", "init=ei")
    )
    assert ei.reward == SPARSE


INIT = {"init": "sft-tiny-pretrained-stories-s0"}
SAMPLES = {"rollouts": "sample-tiny-ei-stories-s0"}
STEPS = {"steps": "steps-tiny-ei-stories-s0"}


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], INIT | SAMPLES | STEPS),
        (["algorithm.returns=solution"], INIT | SAMPLES),
        (["reward=dense"], INIT | SAMPLES),
        (["reward=dense", "algorithm.returns=solution"], INIT | SAMPLES),
        (["reward=orm"], INIT | SAMPLES | {"reward": "orm-tiny-ei-stories-s0"}),
        (["reward=sorm"], INIT | SAMPLES | {"reward": "sorm-tiny-ei-stories-s0"}),
        (["reward=orm", "reward.run=outputs/runs/x"], INIT | SAMPLES),
        (
            ["algorithm.policy=null"],
            INIT | {"rollouts": "sample-tiny-sft-stories-s0", "steps": "steps-tiny-sft-stories-s0"},
        ),
        (["algorithm.policy=null", "reward=dense", "init=run", "init.run=outputs/runs/x"],
         {"rollouts": "sample-tiny-run-stories-s0"}),
        (["init=pretrained"], SAMPLES | STEPS),
    ],
)  # fmt: skip
def test_what_rcrl_needs_first(overrides: list[str], needed: dict[str, str]):
    assert names(train(*RCRL, *overrides)) == needed


def test_steps_are_those_of_the_samples():
    needed = {"init": "ei-sparse-tiny-sft-stories-s0", "rollouts": "sample-tiny-ei-stories-s0"}
    assert names(train("algorithm=steps")) == needed
    assert names(train("algorithm=steps", "init=sft")) == INIT | {
        "rollouts": "sample-tiny-sft-stories-s0"
    }


def test_rcrl_shares_its_runs_with_reward_models_and_expert_iteration():
    first = prerequisites(train(*RCRL))
    orm = prerequisites(train("algorithm=orm"))
    numbers = ["num_solutions_per_prompt=4", "num_continuations=4"]
    sorm = prerequisites(train("algorithm=sorm", *(f"algorithm.{number}" for number in numbers)))
    assert decisive(first["init"]) == decisive(train("algorithm=sft"))
    assert decisive(first["rollouts"]) == decisive(orm["rollouts"])
    assert decisive(first["rollouts"]) == decisive(train("algorithm=sample", "init=ei"))
    assert decisive(first["steps"]) == decisive(sorm["steps"])
    assert decisive(first["steps"]) == decisive(train("algorithm=steps"))
    # The policy that is sampled from is that of Expert Iteration as it comes.
    for gives in ("rollouts", "steps"):
        assert decisive(prerequisites(first[gives])["init"]) == decisive(train())
    assert decisive(prerequisites(first["steps"])["rollouts"]) == decisive(first["rollouts"])
    for kind in ("orm", "sorm"):
        learned = prerequisites(train(*RCRL, f"reward={kind}"))
        assert learned["reward"] == train(f"algorithm={kind}")
        assert decisive(learned["rollouts"]) == decisive(first["rollouts"])
    same = [f"reward.model.{number}" for number in numbers]
    needed = prerequisites(prerequisites(train(*RCRL, "reward=sorm", *same))["reward"])
    assert decisive(needed["steps"]) == decisive(first["steps"])


def test_a_policy_of_another_kind_is_sampled_from():
    changed = prerequisites(train(*RCRL, "algorithm.policy.rounds=3"))
    sampled_from = prerequisites(changed["rollouts"])["init"]
    assert decisive(sampled_from) == decisive(train("algorithm.rounds=3"))
    own = prerequisites(train(*RCRL, "algorithm.policy=null"))
    assert decisive(own["rollouts"]) == decisive(train("algorithm=sample", "init=sft"))
    assert decisive(own["steps"]) == decisive(train("algorithm=steps", "init=sft"))
    # How many are sampled, learnt from and gone on from.
    numbers = ["algorithm.num_solutions_per_prompt=2", "algorithm.num_continuations=3"]
    numbers.append("algorithm.sample.num_samples_per_prompt=5")
    more = prerequisites(train(*RCRL, *numbers))
    assert decisive(more["steps"]) == decisive(train("algorithm=steps", *numbers))


def test_runs_that_learn_from_samples_may_have_their_own_number_of_problems():
    def size(algorithm: str, own: str) -> int | None:
        sizes = ["dataset.train_size=20", f"dataset.reward_train_size={own}"]
        return training_set(train(f"algorithm={algorithm}", *sizes)).train_size

    assert {name: size(name, "50") for name in ("sft", "ei")} == {"sft": 20, "ei": 20}
    for algorithm in ("ppo", "rcrl", "sample", "steps", "orm", "sorm"):
        assert size(algorithm, "50") == 50
        assert size(algorithm, "null") == 20


def test_how_a_reward_model_would_be_made_does_not_count_where_there_is_one():
    given = ["reward=orm", "reward.run=a/orm-1"]
    for same in (["reward.run=b/orm-1"], ["reward.model.epochs=9"], ["reward.policy=null"]):
        assert decisive(train(*given, *same)) == decisive(train(*given))
    assert decisive(train(*given, "reward.run=a/orm-2")) != decisive(train(*given))
    assert decisive(train("reward=orm", "reward.model.epochs=9")) != decisive(train("reward=orm"))


def test_the_stored_configuration_is_the_run_s():
    """A run's folder keeps what asdict gives: reading it back gives the same run."""
    rcrl = [*RCRL, *OWN_NUMBERS, "algorithm.solution_ratio=inf"]
    for overrides in ([], ["algorithm=sft"], ["dataset=svamp", "init=pretrained"], rcrl):
        config = train(*overrides)
        stored = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        assert resolve(stored) == config
