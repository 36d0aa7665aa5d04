"""The tokens that end a completion.

Models end with more tokens than one, and their files don't agree: Llama-3's generation config has
three, of which the tokenizer names one; the files of Qwen2.5 name ``<|endoftext|>`` here and
``<|im_end|>`` there. Whichever of them is sampled, the completion is at its end.
"""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedTokenizerBase

from reasonrl.policy.policy import Policy


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None, *more: int
) -> tuple[int, ...]:
    """The ids of a model's generation config, its tokenizer's EOS and ``more``, each once."""
    configured = getattr(generation, "eos_token_id", None)
    of_model = configured if isinstance(configured, list) else [configured]
    every = (*of_model, tokenizer.eos_token_id, *more)
    return tuple(dict.fromkeys(token for token in every if token is not None))


def name_end_tokens(policy: Policy, *more: int) -> Policy:
    """The policy, whose generation config names all its ``end_tokens`` from now on.

    It is saved with them, so that whatever samples from its folder stops there too.
    """
    generation = policy.model.generation_config
    first, *others = end_tokens(policy.tokenizer, generation, *more)
    generation.eos_token_id = [first, *others] if others else first
    return policy
