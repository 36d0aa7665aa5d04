"""What is computed anew in the backward pass: gradients are as before, and less is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from reasonrl.learning import recompute
from reasonrl.learning.recompute import in_chunks, recompute_layers

IDS = torch.tensor([[5, 9, 200, 31, 7, 12, 99, 3]])


def kept_by(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What a function returns, and the numbers that autograd keeps of it, weights included."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    return result, sum(kept)


def test_chunks_give_the_values_and_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "CHUNK", 4)
    torch.manual_seed(0)
    rows, weight = torch.randn(10, 3, requires_grad=True), torch.randn(3, 50, requires_grad=True)
    places = torch.arange(10)
    sizes: list[int] = []

    def score(rows: Tensor, places: Tensor) -> Tensor:
        sizes.append(len(rows))
        return (rows @ weight).log_softmax(dim=-1)[torch.arange(len(rows)), places]

    whole, kept_of_whole = kept_by(lambda: score(rows, places))
    whole.sum().backward()
    wanted = [rows.grad, weight.grad]
    rows.grad, weight.grad = None, None
    sizes.clear()
    chunked, kept = kept_by(lambda: in_chunks(score, rows, places))
    assert sizes == [4, 4, 2]
    torch.testing.assert_close(chunked, whole)
    assert kept < 100 < 500 <= kept_of_whole  # (10, 50) scores are not among them
    chunked.sum().backward()
    torch.testing.assert_close([rows.grad, weight.grad], wanted)


def test_layers_keep_their_inputs_alone_in_any_mode(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    for mode in (True, False):
        plain, sparing = make_model().train(mode), make_model().train(mode)
        recompute_layers(sparing)
        whole, kept_of_whole = kept_by(lambda plain=plain: plain(input_ids=IDS).logits.sum())
        result, kept = kept_by(lambda sparing=sparing: sparing(input_ids=IDS).logits.sum())
        assert torch.equal(result, whole)
        assert kept < kept_of_whole / 2
        whole.backward()
        result.backward()
        for one, other in zip(sparing.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)


@torch.no_grad()
def test_a_model_samples_as_before(make_model: Callable[..., LlamaForCausalLM]) -> None:
    plain, sparing = make_model(), make_model()
    recompute_layers(sparing)
    samples = [
        model.generate(IDS, max_new_tokens=8, do_sample=False, use_cache=True)
        for model in (plain, sparing)
    ]
    assert torch.equal(*samples)
    state = plain.state_dict().keys()
    assert sparing.state_dict().keys() == state
