"""NeMo-RL's real SFT and DPO through our driver: set-up, data, loops, losses, checkpoints.

    python -m tests.nemo_rl.offline_on_cpu --config native.yaml     # as rlbridge_nemo_rl.driver
    python -m tests.nemo_rl.offline_on_cpu rlbridge run ...         # `rlbridge`, with that driver

Replaced are the two classes of NeMo-RL that need GPUs, as `sft.setup` and `dpo.setup` name them:
the cluster of placement groups, and the policy, whose workers call `.cuda()`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp


class NoCluster:
    """In the place of `RayVirtualCluster`."""

    def __init__(self, **_: Any) -> None:
        pass

    def get_axis_size(self, _: str) -> int:
        return 1


class CpuPolicy:
    """In the place of `Policy`: one worker, in this process, with the model of the config.

    Normalizes by the whole batch, sums over microbatches and clips as NeMo-RL's DTensor worker
    does, and writes the checkpoints that it and Automodel's (`dtensor_cfg._v2`) write. Leaves
    each batch it trained on in `trained`.
    """

    trained: "list[dict[str, Any]]" = []  # noqa: RUF012 # of the last one made

    def __init__(
        self,
        cluster: Any,
        config: Any,
        tokenizer: Any,
        weights_path: Path | None = None,
        optimizer_path: Path | None = None,
        init_reference_model: bool = True,
        **_: Any,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.sharding_annotations = cluster
        self._config, self._tokenizer = config, tokenizer
        self._v2 = bool(config["dtensor_cfg"].get("_v2"))
        load = AutoModelForCausalLM.from_pretrained
        self.model = load(config["model_name"], dtype=torch.float32)
        self._reference = load(config["model_name"], dtype=torch.float32)
        self._first = self._reference if init_reference_model else None
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), **config["optimizer"]["kwargs"]
        )
        CpuPolicy.trained = []
        if weights_path is not None:
            self._load(str(weights_path), str(optimizer_path))

    def prepare_for_training(self) -> None:
        pass

    def print_node_ip_and_gpu_id(self) -> None:
        pass

    def finalize_async_save(self) -> None:  # of the head: what is saved is saved at once here
        pass

    def get_reference_policy_logprobs(self, data: Any, micro_batch_size: int) -> Any:
        with torch.no_grad():
            logprobs = _next_logprobs(self._first, data["input_ids"])
        return {"reference_logprobs": torch.cat([torch.zeros(len(logprobs), 1), logprobs], 1)}

    def train(
        self,
        data: Any,
        loss_fn: Any,
        eval_mode: bool = False,
        gbs: int | None = None,
        mbs: int | None = None,
        timer: Any = None,
    ) -> dict[str, Any]:
        size = gbs or self._config["train_global_batch_size"]
        assert data.size == size
        tokens = (data["token_mask"][:, 1:] * data["sample_mask"][:, None]).sum()
        rows = data["sample_mask"].sum()
        losses, metrics = [], []
        self._optimizer.zero_grad()
        for part in data.make_microbatch_iterator(mbs or self._config["train_micro_batch_size"]):
            loss, found = loss_fn(
                next_token_logprobs=_next_logprobs(self.model, part["input_ids"]),
                data=part, global_valid_seqs=rows, global_valid_toks=tokens,
            )  # fmt: skip
            found |= {"global_valid_seqs": float(rows), "global_valid_toks": float(tokens),
                      "lr": self._optimizer.param_groups[0]["lr"]}  # fmt: skip
            if not eval_mode:
                loss.backward()
            if found["num_valid_samples"] > 0:
                losses.append(float(loss))
                metrics.append(found)
        norm = None
        if not eval_mode:
            limit = self._config["max_grad_norm"]
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)[None]
            self._optimizer.step()
            CpuPolicy.trained.append(
                {k: data[k].tolist() for k in ("input_ids", "input_lengths", "token_mask")}
            )
        joined = {key: [one[key] for one in metrics] for key in (metrics[0] if metrics else ())}
        return {"loss": torch.tensor([sum(losses)]), "grad_norm": norm, "all_mb_metrics": joined}

    def save_checkpoint(
        self, weights_path: str, optimizer_path: str, tokenizer_path: str, checkpointing_cfg: Any
    ) -> None:
        from nemo_rl.utils import native_checkpoint as native

        saved_as = checkpointing_cfg.get("model_save_format")
        if not self._v2:
            assert saved_as is None  # `Policy.save_checkpoint` raises otherwise
            native.save_checkpoint(
                self.model, weights_path, self._optimizer, None, optimizer_path, self._tokenizer,
                tokenizer_path,
            )  # fmt: skip
            return
        # What nemo_automodel's Checkpointer does in this format; in the default one, safetensors,
        # it writes shards that no converter of NeMo-RL's reads.
        assert saved_as == "torch_save"
        dcp.save(native.ModelState(self.model).state_dict(), checkpoint_id=f"{weights_path}/model")
        state = {"optim": native.OptimizerState(self.model, self._optimizer)}
        dcp.save(state, checkpoint_id=f"{optimizer_path}/optim")
        self._tokenizer.save_pretrained(tokenizer_path)

    def _load(self, weights_path: str, optimizer_path: str) -> None:
        from nemo_rl.utils import native_checkpoint as native

        if not self._v2:
            native.load_checkpoint(self.model, weights_path, self._optimizer, None, optimizer_path)
            return
        state = native.ModelState(self.model).state_dict()
        dcp.load(state, checkpoint_id=f"{weights_path}/model")
        self.model.load_state_dict(state)
        optimizer = {"optim": native.OptimizerState(self.model, self._optimizer)}
        dcp.load(optimizer, checkpoint_id=f"{optimizer_path}/optim")


def _next_logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """float32 [B, S - 1]: of each token after the first."""
    logits = model(input_ids=ids).logits.float().log_softmax(-1)
    return logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]


def main(arguments: list[str]) -> int:
    if arguments[0] == "rlbridge":
        from rlbridge.cli.main import main as command_line
        from rlbridge_nemo_rl import backend

        backend.DRIVER = "tests.nemo_rl.offline_on_cpu"
        sys.argv = arguments
        return int(command_line() or 0)
    from nemo_rl.algorithms import dpo, sft

    from rlbridge_nemo_rl import driver

    for algorithm in (sft, dpo):
        algorithm.Policy, algorithm.RayVirtualCluster = CpuPolicy, NoCluster
    return driver.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
