"""Pretrains the embedded models `tiny` and `small` on a noisy mixture of story text.

    python -m models.pretrain tiny
    python -m models.pretrain small

The two stand in for the large pretrained models of the paper, and are made to resemble those: they
have read a great deal of arithmetic and word problems in several formats, much of it careless, and
nobody has shown them yet which format is wanted. Pretraining stops early enough that learning from
feedback has something left to teach.

The documents come from the pretraining split of the stories: no question of another split is among
them. Each is one of
  - one to four questions with answers in one format: calculation lines, words, or the answer alone;
  - a drill of bare calculations;
and has a carelessness of its own: the probability that a step of it goes wrong (another number of
the story, another operator, or a slip in the result), after which it continues with the wrong
result. Half of the documents also write sums and products in either order, so that there is more
than one way to write a right solution.

The script writes models/<name>/ (safetensors, config, tokenizer) with a PROVENANCE.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reasonrl.problems import stories

SEQUENCE_LENGTH = 384
SEQUENCES_PER_STEP = 16
WARMUP_STEPS = 50
SEED = 0

CONTEXT = 512
WORDS_OF_FORMATS = ["Q", "A", "plus", "minus", "times", "over", "is", "So", "the", "answer", "The"]
SYMBOLS = [*"0123456789", *" \n.,?:;+-*/=#<>$()[]", "####", "<<", ">>"]
OPERATOR_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "over"}


@dataclass(frozen=True)
class Size:
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    learning_rate: float
    tokens: int


SIZES = {
    "tiny": Size(128, 4, 4, 448, 1.5e-3, 5_505_024),
    "small": Size(256, 5, 4, 704, 1e-3, 6_000_000),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words (with and without a space before them), single digits and symbols.

    What it encodes it decodes exactly.
    """
    words = sorted({*stories.words(), *WORDS_OF_FORMATS})
    tokens = ["<eos>", "<pad>", "<unk>", *SYMBOLS, *words, *(f" {w}" for w in words)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    pattern = Regex(r" ?[A-Za-z]+|[0-9]|####|<<|>>|\s|.")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def written_steps(
    rng: random.Random, steps: tuple[stories.Step, ...], carelessness: float, either_order: bool
) -> list[stories.Step]:
    """The steps as somebody would write them who errs in each with the given probability.

    A step that uses the result of an earlier one uses it as it was written there.
    """
    numbers = [n for step in steps for n in (step.left, step.right)]
    written: list[stories.Step] = []
    changed: dict[int, int] = {}
    for step in steps:
        left, operator, right = (
            changed.get(step.left, step.left),
            step.operator,
            changed.get(step.right, step.right),
        )
        slip = 0
        if rng.random() < carelessness:
            match rng.choice(["operator", "number", "result"]):
                case "operator":
                    operator = rng.choice("+-*")
                case "number":
                    right = rng.choice(numbers)
                case "result":
                    slip = rng.choice([-10, -2, -1, 1, 2, 10])
        result = {
            "+": left + right,
            "-": left - right,
            "*": left * right,
            "/": left // max(right, 1),
        }[operator]
        result = min(max(result + slip, 0), 999)
        if either_order and operator in "+*" and rng.random() < 0.5:
            left, right = right, left
        written.append(stories.Step(left, operator, right, result))
        changed[step.result] = result
    return written


def answer_text(style: str, steps: list[stories.Step]) -> str:
    final = steps[-1].result
    if style == "lines":
        return "\n".join([*map(str, steps), f"#### {final}"])
    if style == "words":
        sentences = [
            f"{s.left} {OPERATOR_WORDS[s.operator]} {s.right} is {s.result}." for s in steps
        ]
        return " ".join([*sentences, f"The answer is {final}."])
    return str(final)


def documents(seed: int) -> Iterator[str]:
    """An endless stream of pretraining documents."""
    rng = random.Random(f"pretraining/{seed}")
    source = stories.generate("pretrain", seed=seed, min_steps=1, max_steps=5)
    while True:
        carelessness = rng.choice([0.0, 0.1, 0.3, 0.6])
        either_order = rng.random() < 0.5
        if rng.random() < 0.1:
            drills = [step for story in islice(source, 6) for step in story.steps]
            yield "\n".join(
                map(str, written_steps(rng, tuple(drills), carelessness / 3, either_order))
            )
            continue
        style = rng.choice(["lines", "words", "direct"])
        count = rng.choice([1, 1, 2, 3, 4])
        yield "\n\n".join(
            f"Q: {story.question}\nA: "
            + answer_text(style, written_steps(rng, story.steps, carelessness, either_order))
            for story in islice(source, count)
        )


def token_blocks(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[np.ndarray]:
    """Documents joined by EOS and cut into blocks of SEQUENCE_LENGTH ids."""
    buffer: list[int] = []
    stream = documents(seed)
    while True:
        for ids in tokenizer(list(islice(stream, 64)))["input_ids"]:
            buffer += [*ids, tokenizer.eos_token_id]
        while len(buffer) >= SEQUENCE_LENGTH:
            yield np.array(buffer[:SEQUENCE_LENGTH])
            del buffer[:SEQUENCE_LENGTH]


def pretrain(name: str, num_tokens: int, folder: Path, save_every: int) -> None:
    size = SIZES[name]
    tokenizer = build_tokenizer()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_heads,
            intermediate_size=size.intermediate_size,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    blocks = token_blocks(tokenizer, SEED)
    data_hash = hashlib.sha256()
    started, losses = time.time(), []
    tokens_per_step = SEQUENCE_LENGTH * SEQUENCES_PER_STEP
    num_steps = num_tokens // tokens_per_step
    for step in track(range(num_steps), description=f"pretraining {name}"):
        ids = np.stack(list(islice(blocks, SEQUENCES_PER_STEP)))
        data_hash.update(ids.astype("<i4").tobytes())
        batch = torch.from_numpy(ids)
        optimizer.param_groups[0]["lr"] = size.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seen = (step + 1) * tokens_per_step
        last = step + 1 == num_steps
        if last or (save_every and seen // save_every > (seen - tokens_per_step) // save_every):
            target = folder if last else folder / f"{seen // 1000}k"
            save(
                target,
                model,
                tokenizer,
                {
                    "command": f"python -m models.pretrain {name} --tokens {num_tokens}",
                    "seed": SEED,
                    "tokens": seen,
                    "data_sha256": data_hash.hexdigest(),
                    "loss": round(float(np.mean(losses[-50:])), 4),
                    "parameters": model.num_parameters(),
                    "seconds": round(time.time() - started),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "tokenizers": tokenizers.__version__,
                },
            )
            print(f"{seen} tokens, loss {np.mean(losses[-50:]):.3f}, {time.time() - started:.0f} s")


def save(
    folder: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    provenance: dict[str, object],
) -> None:
    """Saves bfloat16 weights: they take half the space, and what is lost is below the noise."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    (folder / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=SIZES)
    parser.add_argument("--tokens", type=int, help="how long to train (default: the size's own)")
    parser.add_argument("--folder", type=Path, help="where to write (default: models/<name>)")
    parser.add_argument("--save-every", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(
        args.name,
        args.tokens or SIZES[args.name].tokens,
        args.folder or Path(__file__).parent / args.name,
        args.save_every,
    )


if __name__ == "__main__":
    main()
