"""Sampling with vLLM, in the process of the run and on the policy's weights as they are.

One vLLM lives in a process; it is started when an engine is first opened, and takes the weights of
the next engine in place. After each hand-over its log-probabilities of a few tokens are compared
with the policy's own: an engine that went on with other weights would be noticed by nobody else.

vLLM's draws aren't those of ``sampling.transformers``: completions are others, of the same
distribution. A row's draws depend on (seed, prompt index, sample index) alone; the batch that a row
is in moves its logits in the last bits, which may change a draw.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from reasonrl.config.sampler.base import SamplerConfig
from reasonrl.config.sampler.vllm import VLLMConfig
from reasonrl.grading.steps import ends_step
from reasonrl.policy.ends import end_tokens
from reasonrl.policy.policy import Policy, load_policy
from reasonrl.sampling.base import Engine, SamplingParams
from reasonrl.sampling.finish import Finish, check_room
from reasonrl.types import Completion, Prompt
from reasonrl.util.errors import UserError
from reasonrl.util.seeding import derive_seed

logger = logging.getLogger(__name__)

# The mean difference of log-probabilities, in nats a token, of which a hand-over warns, and for
# which it is refused. Two engines of float32 differ by 1e-5; bfloat16 has 8 bits.
WARNED = {"float32": 1e-4, "bfloat16": 0.05}
REFUSED = {"float32": 1e-3, "bfloat16": 0.5}
PROBE_TOKENS = 32
OTHER_THAN_SHAPE = ("_name_or_path", "dtype", "transformers_version")  # of a model's config
BATCHED_TOKENS = 8192  # of prompts that are read at once

# vLLM reads these when it is imported. It runs in this process, whose weights it takes, binds no
# cores, and says what matters to stderr, for stdout has results.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GB, where there is no GPU
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


@dataclass
class _Server:
    """The vLLM of this process."""

    llm: Any
    kind: object  # what decides whether it can take an engine's weights
    holder: weakref.ref[VLLMEngine] | None = None  # the engine whose weights it has
    asleep: bool = False


_server: _Server | None = None


@dataclass
class _Row:
    """A completion in the making."""

    prompt: int  # the index of its prompt
    sample: int
    context: list[int]  # all that the policy reads: the prompt, labels, and what it wrote
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    step_start: int = 0  # the place in token_ids where its step began


class VLLMEngine(Engine):
    """An engine on vLLM; it needs no GPU, but is made for them."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        settings: VLLMConfig,
        dtype: str,
        device: torch.device,
    ) -> None:
        self.tokenizer, self.config, self.settings = tokenizer, config, settings
        self.dtype, self.device = dtype, device
        self.gap = 0.0  # the difference of the last hand-over, nats a token
        self.max_model_len = min(settings.max_model_len, config.max_position_embeddings)

    @classmethod
    def open(
        cls, source: str | Policy, settings: SamplerConfig, *, dtype: str, device: torch.device
    ) -> Self:
        policy = (
            load_policy(source, dtype, torch.device("cpu")) if isinstance(source, str) else source
        )
        asked = cast("VLLMConfig", settings)
        engine = cls(policy.tokenizer, policy.model.config, asked, dtype, device)
        engine.refresh(policy.model)
        return engine

    def refresh(self, model: PreTrainedModel) -> None:
        """Takes the weights in place, and checks that they have come.

        Raises UserError if the log-probabilities under them aren't the policy's.
        """
        own_ends = end_tokens(self.tokenizer, model.generation_config)
        self._finish_settings = own_ends, _allowed(model)
        server = _serve(self)
        if server.asleep:
            server.llm.wake_up()
            server.asleep = False
        server.holder = weakref.ref(self)
        hand_over(server.llm, model)
        self.gap = self._probe(server.llm, model)
        refused = self.settings.logprob_gap or REFUSED[self.dtype]
        said = f"vLLM's log-probabilities are {self.gap:.2g} nats a token from the policy's own"
        logger.debug(said)
        if not self.gap <= refused:
            raise UserError(
                f"sampler.logprob_gap={refused:g} must be what vLLM's log-probabilities differ by "
                f"at most from those of the policy it samples from; got {self.gap:.2g} nats a "
                "token. Its weights may not have come, or it computes this model otherwise: pass "
                "sampler=transformers, or a larger sampler.logprob_gap."
            )
        if self.gap > WARNED[self.dtype]:
            logger.warning("%s (sampler.logprob_gap=%g refuses)", said, refused)

    def release(self) -> None:
        _rest(self)

    def __del__(self) -> None:
        _rest(self)

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        first: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See ``Sampler.sample``. Raises UserError for prompts that leave too little room."""
        check_room(prompts, params, self.max_model_len, "sampler.max_model_len")
        samples, label = params.num_samples_per_prompt, list(params.step_label)
        rows = [
            _Row(i, k, [*prompt.token_ids, *label])
            for i, prompt in enumerate(prompts)
            for k in range(samples)
        ]
        finished: dict[tuple[int, int], Completion] = {}
        size = self.settings.num_rows
        for start in range(0, len(rows), size):
            flying = rows[start : start + size]
            while flying:
                flying = self._go_on(flying, prompts, params, seed, first, finished, on_progress)
        return [finished[row.prompt, row.sample] for row in rows]

    def _go_on(
        self,
        rows: list[_Row],
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed: int,
        first: int,
        finished: dict[tuple[int, int], Completion],
        on_progress: Callable[[int], None] | None,
    ) -> list[_Row]:
        """Samples until each row is finished or begins another step; returns those that go on."""
        ends, allowed = self._finish_settings
        finish = Finish(self.tokenizer, ends, self.config.vocab_size, params)
        requests = [self._request(row, params, seed, first, finish.ends, allowed) for row in rows]
        going = []
        for row, ids, logprobs in zip(rows, *self._generate(rows, requests), strict=True):
            before = len(row.token_ids)
            taken, ended = self._step(row, ids, params)
            row.token_ids += ids[:taken]
            row.logprobs += logprobs[:taken]
            row.context += ids[:taken]
            room = self.max_model_len - len(row.context)
            label = params.step_label if ended else ()
            completion = finish.completion(
                prompts[row.prompt].problem_id,
                row.sample,
                row.token_ids,
                row.logprobs,
                full=len(row.token_ids) >= params.max_new_tokens or room <= len(label),
            )
            if completion is not None:
                finished[row.prompt, row.sample] = completion
                continue
            assert len(row.token_ids) > before, "vLLM gave no token"
            row.context += label
            row.step_start = len(row.token_ids) if ended else row.step_start
            going.append(row)
        if on_progress is not None and len(rows) > len(going):
            on_progress(len(rows) - len(going))
        return going

    def _step(
        self, row: _Row, token_ids: Sequence[int], params: SamplingParams
    ) -> tuple[int, bool]:
        """How many of a row's new tokens are taken, and whether its step ends with them."""
        if params.step_label:
            so_far = row.token_ids[row.step_start :]
            for count in range(1, len(token_ids) + 1):
                step = [*so_far, *token_ids[:count]]
                if ends_step(self.tokenizer, step, params.step_delimiter):
                    return count, True
        return len(token_ids), False

    def _request(
        self,
        row: _Row,
        params: SamplingParams,
        seed: int,
        first: int,
        ends: Collection[int],
        allowed: list[int] | None,
    ) -> Any:
        import vllm

        stop = [*params.stop, *([params.step_delimiter] if params.step_label else [])]
        return vllm.SamplingParams(
            temperature=params.temperature,
            seed=derive_seed(seed, first + row.prompt, row.sample, len(row.token_ids)),
            max_tokens=min(
                params.max_new_tokens - len(row.token_ids), self.max_model_len - len(row.context)
            ),
            logprobs=0,
            stop=stop,
            stop_token_ids=sorted(ends),
            allowed_token_ids=allowed,
            detokenize=bool(stop),
            skip_special_tokens=True,
        )

    def _generate(
        self, rows: Sequence[_Row], requests: list[Any]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The new tokens of each row, and their log-probabilities."""
        server = _serve(self)
        if server.holder is None or server.holder() is not self:
            raise RuntimeError("vLLM has the weights of another engine; call refresh first")
        contexts = [{"prompt_token_ids": row.context} for row in rows]
        of_rows = server.llm.generate(contexts, requests, use_tqdm=False)
        outputs = [of_row.outputs[0] for of_row in of_rows]
        ids = [list(out.token_ids) for out in outputs]
        logprobs = [
            [of_token[token].logprob for of_token, token in zip(out.logprobs, of, strict=True)]
            for out, of in zip(outputs, ids, strict=True)
        ]
        return ids, logprobs

    @torch.inference_mode()
    def _probe(self, llm: Any, model: PreTrainedModel) -> float:
        """The mean difference of log-probabilities between vLLM and the model, nats a token."""
        import vllm

        rng = np.random.default_rng(0)
        ids = rng.integers(self.config.vocab_size, size=min(PROBE_TOKENS, self.max_model_len - 1))
        params = vllm.SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        (out,) = llm.generate([{"prompt_token_ids": ids.tolist()}], params, use_tqdm=False)
        theirs = [of[i].logprob for i, of in zip(ids[1:], out.prompt_logprobs[1:], strict=True)]
        read = torch.tensor(ids, device=model.device)[None]
        own = model(read, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
        of_tokens = own.gather(1, read[0, 1:, None])[:, 0].cpu().numpy()
        return float(np.abs(of_tokens - theirs).mean())


def hand_over(llm: Any, model: PreTrainedModel) -> None:
    """Puts a model's weights into vLLM's place of them; what others have computed is forgotten."""
    weights = iter(model.state_dict().items())
    llm.collective_rpc(
        "reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": True}
    )
    llm.reset_prefix_cache()


def _serve(engine: VLLMEngine) -> _Server:
    """The vLLM of this process, started anew where the one there is can't take these weights."""
    global _server
    shape = {k: v for k, v in engine.config.to_dict().items() if k not in OTHER_THAN_SHAPE}
    kind = (
        shape,
        engine.dtype,
        engine.max_model_len,
        engine.settings.gpu_memory_utilization,
        engine.settings.num_rows,
    )
    if _server is None or _server.kind != kind:
        _stop()
        _server = _Server(_start(engine), kind)
    return _server


def _start(engine: VLLMEngine) -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        engine.config.save_pretrained(folder)
        engine.tokenizer.save_pretrained(folder)
        on_gpu = engine.device.type == "cuda"
        return vllm.LLM(
            model=folder,
            dtype=engine.dtype,
            load_format="dummy",  # the weights are handed over
            generation_config="vllm",  # which has no defaults for sampling
            max_model_len=engine.max_model_len,
            max_num_seqs=engine.settings.num_rows,
            gpu_memory_utilization=engine.settings.gpu_memory_utilization,
            enable_prefix_caching=True,  # a prompt is read once for all of its samples
            logprobs_mode="processed_logprobs",  # at the sampling temperature
            enable_sleep_mode=on_gpu,
            enforce_eager=not on_gpu,
            enable_chunked_prefill=on_gpu,  # else it asks a CPU's generator for its offset
            max_num_batched_tokens=max(BATCHED_TOKENS, engine.max_model_len),
            disable_log_stats=True,
            **({"distributed_executor_backend": "external_launcher"} if _in_ranks() else {}),
        )


def _in_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _stop() -> None:
    """Ends the vLLM of this process, if there is one."""
    global _server
    if _server is None:
        return
    from vllm.distributed import parallel_state

    _server.llm.llm_engine.engine_core.shutdown()
    _server = None
    gc.collect()
    parallel_state.destroy_model_parallel()
    if not _in_ranks():
        parallel_state.destroy_distributed_environment()


def _rest(engine: VLLMEngine) -> None:
    """Frees the weights and the cache in the GPU, if they are this engine's."""
    if _server is not None and _server.holder is not None and _server.holder() in (engine, None):
        _server.holder = None
        if engine.device.type == "cuda" and not _server.asleep:
            _server.llm.sleep(level=1)
            _server.asleep = True


def _allowed(model: PreTrainedModel) -> list[int] | None:
    """The token ids that the policy may sample; None: all of them."""
    suppressed = {*(getattr(model.generation_config, "suppress_tokens", None) or ())}
    return (
        [i for i in range(model.config.vocab_size) if i not in suppressed] if suppressed else None
    )
