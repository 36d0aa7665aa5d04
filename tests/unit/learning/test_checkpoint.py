"""Checkpoints: bit-identical resume, damage, kill -9, other architectures, tied weights."""

import errno
import hashlib
import json
import math
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from reasonrl.learning.checkpoint import Checkpoints, weights_hash
from reasonrl.util.errors import UserError


def mlp(width: int = 8, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 2)
    ).to(dtype)


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def setup(dtype=torch.float32, **options):
    model = mlp(dtype=dtype)
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.1},
            {"params": [*model[1].parameters(), *model[3].parameters()], "lr": 3e-3},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        **options,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return model, optimizer, scheduler


def train(model, optimizer, scheduler, steps):
    dtype = model[0].weight.dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 4, dtype=dtype)).square().mean().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"amsgrad": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_loop_equals_an_uninterrupted_one_bit_for_bit(tmp_path, options, dtype):
    torch.manual_seed(1)
    straight = setup(dtype, **options)
    train(*straight, steps=10)
    drawn = torch.rand(3)

    torch.manual_seed(1)
    model, optimizer, scheduler = setup(dtype, **options)
    train(model, optimizer, scheduler, steps=5)
    Checkpoints(tmp_path).save(
        5, model=model, optimizer=optimizer, state={"scheduler": scheduler.state_dict()}
    )

    torch.manual_seed(999)
    model, optimizer, scheduler = setup(dtype, **options)
    checkpoint = Checkpoints(tmp_path).latest()
    assert checkpoint.step == 5
    scheduler.load_state_dict(checkpoint.restore(model, optimizer)["scheduler"])
    train(model, optimizer, scheduler, steps=5)
    assert torch.equal(torch.rand(3), drawn)
    expected = straight[0].state_dict()
    assert len(expected) == 9
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert [group["lr"] for group in optimizer.param_groups] == [
        group["lr"] for group in straight[1].param_groups
    ]
    # Training wrote into the loaded tensors, but not into the checkpoint.
    assert Checkpoints(tmp_path).latest() == checkpoint


def test_scalars_of_the_optimizer_come_from_the_checkpoint(tmp_path):
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=1 / 3)
    Checkpoints(tmp_path).save(1, model=model, optimizer=optimizer, state={})
    other = torch.optim.AdamW(model.parameters(), lr=7.0, weight_decay=0.0, betas=(0.5, 0.5))
    Checkpoints(tmp_path).latest().restore(model, other)
    (group,) = other.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.3333333333333333)
    assert tuple(group["betas"]) == (0.9, 0.999)


def test_state_round_trips_exactly_and_nothing_is_pickled(tmp_path):
    generator = np.random.default_rng(3)
    state = {
        "round": np.int64(2),
        "best": -math.inf,
        "third": 1 / 3,
        "ids": [1, 2],
        "rng": generator.bit_generator.state,
    }
    Checkpoints(tmp_path).save(123, model=mlp(), optimizer=None, state=state)
    folder = tmp_path / "step-00000123"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "rng.safetensors",
        "state.json",
    ]
    restored = Checkpoints(tmp_path).latest().restore(None, None)
    assert {k: v for k, v in restored.items() if k != "rng"} == {
        "round": 2,
        "best": -math.inf,
        "third": 0.3333333333333333,
        "ids": [1, 2],
    }
    expected = generator.random(4)
    again = np.random.default_rng()
    again.bit_generator.state = restored["rng"]
    assert again.random(4).tolist() == expected.tolist()


def test_only_the_newest_are_kept_and_leftovers_do_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 10, 9_999_999, 123_456_789):
        checkpoints.save(step, model=None, optimizer=None, state={"step": step})
    (tmp_path / "c" / ".step-200000000~h~1~0.tmp").mkdir()
    (tmp_path / "c" / "step-old").mkdir()
    assert sorted(p.name for p in (tmp_path / "c").glob("step-[0-9]*")) == [
        "step-09999999",
        "step-123456789",
    ]
    assert checkpoints.latest().restore(None, None) == {"step": 123_456_789}


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog, name, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, model=mlp(), optimizer=None, state={"step": step})
    path = tmp_path / "step-00000002" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-5])
    used = checkpoints.latest()
    assert used.restore(None, None) == {"step": 1}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith(f"{tmp_path / 'step-00000002'} is damaged (")
    assert message.endswith(f"; using {tmp_path / 'step-00000001'} instead")


def test_all_damaged_means_none(tmp_path, caplog):
    Checkpoints(tmp_path).save(1, model=None, optimizer=None, state={})
    (tmp_path / "step-00000001" / "state.json").unlink()
    assert Checkpoints(tmp_path).latest() is None
    assert caplog.messages[0].endswith("; no intact checkpoint is left")


def test_a_damaged_later_checkpoint_does_not_crowd_out_the_new_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(20, model=None, optimizer=None, state={})
    (tmp_path / "step-00000020" / "state.json").unlink()
    checkpoints.save(10, model=None, optimizer=None, state={"step": 10})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    checkpoints.save(10, model=None, optimizer=None, state={"step": "again"})
    assert checkpoints.latest().restore(None, None) == {"step": "again"}


@pytest.mark.parametrize(
    ("saved", "other", "message"),
    [
        (
            mlp(8),
            mlp(16),
            r"model\.0\.weight=\(16, 4\) float32 must equal .*: \(8, 4\) float32\. ",
        ),
        (
            mlp(8),
            mlp(8, torch.bfloat16),
            r"model\.0\.weight=\(8, 4\) bfloat16 must equal .*: \(8, 4\) float32\. ",
        ),
        (
            nn.Sequential(nn.Linear(1, 1, bias=False)),
            nn.Sequential(nn.Linear(1, 1)),
            r"model\.0\.bias=\(1,\) float32 must equal .*: no such tensor\. ",
        ),
        (
            nn.Sequential(nn.Linear(1, 1)),
            nn.Sequential(nn.Linear(1, 1, bias=False)),
            r"model\.0\.bias=no such tensor must equal .*: \(1,\) float32\. ",
        ),
    ],
)
def test_another_architecture_is_refused_before_anything_changes(tmp_path, saved, other, message):
    Checkpoints(tmp_path).save(1, model=saved, optimizer=None, state={})
    before = weights_hash(other)
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path).latest().restore(other, None)
    assert weights_hash(other) == before


def test_nothing_starts_afresh_silently(tmp_path):
    model = mlp()
    adam = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, model=model, optimizer=None, state={})
    with pytest.raises(UserError, match="must hold the optimizer's state; got none"):
        checkpoints.latest().restore(model, adam)
    checkpoints.save(2, model=None, optimizer=adam, state={})
    with pytest.raises(UserError, match="must hold the model's state; got none"):
        checkpoints.latest().restore(model, adam)
    grouped = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    with pytest.raises(UserError, match="optimizer must have the checkpoint's parameter groups"):
        checkpoints.latest().restore(None, grouped)


def test_tied_embeddings_are_saved_once_and_stay_tied(tmp_path):
    model = llama(tied=True)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1)
    Checkpoints(tmp_path).save(1, model=model, optimizer=None, state={})
    saved = load_file(tmp_path / "step-00000001" / "model.safetensors")
    assert "model.embed_tokens.weight" in saved
    assert "lm_head.weight" not in saved

    other = llama(tied=True)
    Checkpoints(tmp_path).latest().restore(other, None)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
    assert other.lm_head.weight.data_ptr() == other.model.embed_tokens.weight.data_ptr()
    assert weights_hash(other) == weights_hash(model)
    with pytest.raises(UserError, match=r"model\.lm_head\.weight=\(11, 8\) float32 must equal"):
        Checkpoints(tmp_path).latest().restore(llama(tied=False), None)


def test_frozen_parameters_stay_as_the_model_was_loaded(tmp_path):
    model = mlp()
    model[0].requires_grad_(False)
    Checkpoints(tmp_path).save(1, model=model, optimizer=None, state={})
    saved = load_file(tmp_path / "step-00000001" / "model.safetensors")
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(saved) == {"1.weight", "1.bias", "3.weight", "3.bias"} | buffers

    other = mlp()
    other[0].requires_grad_(False)
    frozen = other[0].weight.clone()
    Checkpoints(tmp_path).latest().restore(other, None)
    assert torch.equal(other[3].weight, model[3].weight)
    assert torch.equal(other[0].weight, frozen)
    with pytest.raises(
        UserError, match=r"model\.0\.weight=.* must equal the checkpoint's; .*no such"
    ):
        Checkpoints(tmp_path).latest().restore(mlp(), None)


def test_a_buffer_comes_back_and_one_without_is_empty(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, model=None, optimizer=None, state={})
    assert checkpoints.latest().buffer() == {}
    buffer = {"returns": torch.tensor([0.5, 1.0]), "advantages": torch.tensor([-1.0, 1e-9])}
    checkpoints.save(2, model=None, optimizer=None, state={}, buffer=buffer)
    found = checkpoints.latest().buffer()
    assert {name: values.tolist() for name, values in found.items()} == {
        "returns": [0.5, 1.0],
        "advantages": [-1.0, pytest.approx(1e-9, rel=1e-6)],
    }


def test_transposed_and_empty_tensors_are_kept(tmp_path):
    def build(fill):
        module = nn.Module()
        module.register_buffer("a", torch.empty(0))
        module.register_buffer("b", torch.empty(0))
        module.register_buffer("t", (torch.arange(6.0) * fill).reshape(2, 3).T)
        return module

    Checkpoints(tmp_path).save(1, model=build(1), optimizer=None, state={})
    module = build(0)
    Checkpoints(tmp_path).latest().restore(module, None)
    assert module.t.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_weights_hash_is_of_names_shapes_and_bytes():
    model = nn.Linear(2, 1, dtype=torch.bfloat16)
    model.weight.data = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
    model.bias.data.fill_(1)
    # bfloat16 is the upper half of float32: 1 = 0x3f80, -2 = 0xc000, little-endian on disk.
    content = b"bias (1,) bfloat16\n" + bytes([0x80, 0x3F])
    content += b"weight (1, 2) bfloat16\n" + bytes([0x80, 0x3F, 0x00, 0xC0])
    assert weights_hash(model) == hashlib.sha256(content).hexdigest()
    model.weight.data[0, 1] = -2.015625  # the next bfloat16: 2 (1 + 2^-7)
    assert weights_hash(model) != hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_one_line_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, model=mlp(), optimizer=None, state={"step": 1})

    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(UserError) as caught:
        checkpoints.save(2, model=mlp(), optimizer=None, state={"step": 2})
    assert str(caught.value) == (
        f"path={tmp_path / 'step-00000002'} must be writable; got No space left on device. "
        "Free some space there and run the same command again."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoints.latest().restore(None, None) == {"step": 1}


def test_a_write_that_safetensors_fails_at_is_a_user_error_too(tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"step-00000002 must be .* got .*File too large"):
            Checkpoints(tmp_path).save(2, model=nn.Linear(1000, 10), optimizer=None, state={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_kill_9_while_saving_always_leaves_a_verified_checkpoint(tmp_path):
    script = (
        "import sys, itertools, torch; from pathlib import Path\n"
        "from reasonrl.learning.checkpoint import Checkpoints\n"
        "torch.set_num_threads(1)\n"
        "checkpoints = Checkpoints(Path(sys.argv[1]))\n"
        "start = checkpoints.latest()\n"
        "model = torch.nn.Linear(300, 300)\n"
        "for step in itertools.count(start.step + 1 if start else 0):\n"
        "    torch.nn.init.constant_(model.weight, step)\n"
        "    checkpoints.save(step, model=model, optimizer=None, state={'step': step})\n"
        "    print(step, flush=True)\n"
    )
    announced = -1
    for delay in (0.0, 0.004, 0.013):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        announced = max([announced + 1, *map(int, rest.split())])
        checkpoint = Checkpoints(tmp_path).latest()
        assert checkpoint.step in (announced, announced + 1)  # saved, or killed before it said so
        model = nn.Linear(300, 300)
        assert checkpoint.restore(model, None) == {"step": checkpoint.step}
        assert (model.weight == checkpoint.step).all()
        announced = checkpoint.step
    Checkpoints(tmp_path).save(10**6, model=None, optimizer=None, state={})
    assert len(list(tmp_path.iterdir())) == 2  # no leftover of a killed process


def test_the_manifest_names_every_other_file(tmp_path):
    Checkpoints(tmp_path).save(1, model=mlp(), optimizer=None, state={})
    folder = tmp_path / "step-00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    del files["manifest.json"]
    assert manifest == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
