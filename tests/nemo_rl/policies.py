"""Policies without a GPU: one that says what it is told, one that really learns."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

CUT = "[cut]"
"""An answer that ends so was cut at its token limit."""


def scripted(tokenizer: Any, answer: Callable[[str, int], str | None]) -> Any:
    """NeMo-RL's generation interface over a function.

    Args:
        answer: from the decoded input and the row of the call to the text to sample; None fails,
            `CUT` at its end is left out and the turn has no end.
    """
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict
    from nemo_rl.models.generation.interfaces import GenerationInterface

    class Scripted(GenerationInterface):
        cfg: ClassVar[Any] = {
            "backend": "vllm",
            "vllm_cfg": {"max_model_len": 512, "async_engine": True},
        }

        def init_collective(self, *_: Any) -> list[Any]:
            return []

        def prepare_for_generation(self, *_: Any, **__: Any) -> bool:
            return True

        def finish_generation(self, *_: Any, **__: Any) -> bool:
            return True

        def shutdown(self) -> bool:
            return True

        def generate(self, data: Any, greedy: bool = False) -> Any:
            ids, lengths = data["input_ids"], data["input_lengths"].tolist()
            outputs, sampled, cut = [], [], []
            for row, length in enumerate(lengths):
                prompt = ids[row, :length]
                text = answer(tokenizer.decode(prompt, skip_special_tokens=False), row)
                if text is None:
                    raise RuntimeError("the engine failed")
                cut.append(text.endswith(CUT))
                new = tokenizer(text.removesuffix(CUT), add_special_tokens=False).input_ids
                new += [] if cut[-1] else [tokenizer.eos_token_id]
                outputs.append(torch.cat([prompt, torch.tensor(new)]))
                sampled.append(len(new))
            return _batch(outputs, sampled, cut, tokenizer.pad_token_id)

        async def generate_async(self, data: Any, greedy: bool = False) -> AsyncIterator[Any]:
            yield 0, self.generate(data)

    def _batch(outputs: list[Any], sampled: list[int], cut: list[bool], pad: int) -> Any:
        width = max(map(len, outputs))
        ids = torch.full((len(outputs), width), pad)
        logprobs = torch.zeros(len(outputs), width)
        for row, (output, count) in enumerate(zip(outputs, sampled, strict=True)):
            ids[row, : len(output)] = output
            logprobs[row, len(output) - count : len(output)] = -0.5
        return BatchedDataDict(
            output_ids=ids,
            generation_lengths=torch.tensor(sampled),
            unpadded_sequence_lengths=torch.tensor([len(output) for output in outputs]),
            logprobs=logprobs,
            truncated=torch.tensor(cut),
        )

    return Scripted()


class LearningPolicy:
    """A tiny Llama that samples, scores and learns in this process, as `grpo_train` asks.

    NeMo-RL's own workers need a GPU (`prepare_loss_input` calls `.cuda()`); the loss is NeMo-RL's.
    """

    cfg: ClassVar[Any] = {"vllm_cfg": {"max_model_len": 128, "async_engine": False}}
    requires_kv_scale_sync = False
    data_parallel_size = 1
    _NOTHING_TO_DO: ClassVar = {
        "offload_before_refit", "offload_after_refit", "prepare_for_generation",
        "finish_generation", "prepare_for_lp_inference", "prepare_for_training",
        "clear_logger_metrics", "finalize_async_save",
    }  # fmt: skip

    def __init__(self, tokenizer: Any, max_new_tokens: int = 4, seed: int = 0) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.trained: list[dict[str, Any]] = []

    def warm_up(self, prompts: list[torch.Tensor], answers: list[str], steps: int = 60) -> None:
        """Learn to give any of `answers`, so that a verifier has something to tell apart."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        turn_ends = [
            [*self._tokenizer(answer, add_special_tokens=False).input_ids,
             self._tokenizer.eos_token_id]
            for answer in answers
        ]  # fmt: skip
        for step in range(steps):
            prompt = prompts[step % len(prompts)]
            rows = [torch.cat([prompt, torch.tensor(end)]) for end in turn_ends]
            ids = torch.stack([row for row in rows if len(row) == len(rows[0])])
            loss = -self._next_logprobs(ids)[:, len(prompt) - 1 :].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def __getattr__(self, name: str) -> Any:
        if name in self._NOTHING_TO_DO:
            return lambda *_, **__: None
        raise AttributeError(name)

    def get_logger_metrics(self) -> dict[str, Any]:
        return {}

    def get_free_memory_bytes(self) -> int:
        return 1 << 30

    def stream_weights_via_ipc_zmq(self, **_: Any) -> list[Any]:
        import ray

        return [ray.put(True)]

    def update_weights_via_ipc_zmq(self) -> list[Any]:
        import ray

        return [ray.put(True)]

    def save_checkpoint(self, weights_path: str, **_: Any) -> None:
        self.model.save_pretrained(weights_path)

    def load_checkpoint(self, weights_path: Path) -> None:
        """Go on from another policy's weights."""
        self.model = self.model.from_pretrained(weights_path)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def generate(self, data: Any, greedy: bool = False) -> Any:
        from nemo_rl.distributed.batched_data_dict import BatchedDataDict

        pad = self._tokenizer.pad_token_id
        outputs = []
        for ids, length in zip(data["input_ids"], data["input_lengths"].tolist(), strict=True):
            prompt = ids[None, :length]
            with torch.no_grad():
                outputs.append(
                    self.model.generate(
                        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
                        max_new_tokens=self._max_new_tokens, top_k=0, pad_token_id=pad,
                    )[0]
                )  # fmt: skip
        lengths = torch.tensor([len(output) for output in outputs])
        ids = torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True, padding_value=pad)
        logprobs = self._logprobs(ids)
        at = torch.arange(ids.shape[1])
        sampled = (at >= data["input_lengths"][:, None]) & (at < lengths[:, None])
        return BatchedDataDict(
            output_ids=ids,
            generation_lengths=lengths - data["input_lengths"],
            unpadded_sequence_lengths=lengths,
            logprobs=logprobs * sampled,
            truncated=torch.zeros(len(outputs), dtype=torch.bool),
        )

    def _logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([torch.zeros(len(ids), 1), self._next_logprobs(ids)], 1)

    def _next_logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=ids).logits.float().log_softmax(-1)
        return logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]

    def get_logprobs(self, data: Any, timer: Any = None) -> Any:
        from nemo_rl.distributed.batched_data_dict import BatchedDataDict

        return BatchedDataDict(logprobs=self._logprobs(data["input_ids"]))

    def get_reference_policy_logprobs(self, data: Any, timer: Any = None) -> Any:
        from nemo_rl.distributed.batched_data_dict import BatchedDataDict

        return BatchedDataDict(reference_logprobs=self._logprobs(data["input_ids"]))

    def train(self, data: Any, loss_fn: Any, timer: Any = None, **_: Any) -> dict[str, Any]:
        self.trained.append({key: data[key].clone() for key in ("sample_mask", "advantages")})
        tokens = (data["token_mask"][:, 1:] * data["sample_mask"][:, None]).sum()
        rows = data["sample_mask"].sum()
        loss, metrics = loss_fn(
            data=data,
            global_valid_seqs=rows,
            global_valid_toks=tokens,
            next_token_logprobs=self._next_logprobs(data["input_ids"]),
        )
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        found = {key: [float(value)] for key, value in metrics.items()}
        found |= {
            "global_valid_toks": [float(tokens)],
            "global_valid_seqs": [float(rows)],
            "lr": [1e-3],
        }
        return {"loss": loss.detach()[None], "grad_norm": norm[None], "all_mb_metrics": found}
