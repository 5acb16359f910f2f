"""Rewards from a NeMo Gym server, as a verl reward manager. Never invents a number.

In a verl config::

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://rlbridge_verl
    reward.reward_manager.name=NeMoGymReward
    +reward.nemo_gym.url=http://127.0.0.1:8000

A reward that could not be computed raises `InvalidRewardError`: verl's V1 trainer then drops this
trajectory, so that it is in no loss, baseline or deviation. `ValidRewardSampler` handles the
groups this leaves with one trajectory or none.
"""

from pathlib import Path
from typing import Any

import orjson
from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import InvalidReward, Reward, ValidReward
from rlbridge.errors import ConfigError, GymError
from rlbridge.gym import GymClient
from rlbridge.ledger import RewardLedger
from rlbridge_verl.dataset import GYM_ROW, SPLIT


class InvalidRewardError(GymError):
    """This trajectory has no reward; verl drops it. The message says why."""


class NeMoGymReward(RewardManagerBase):
    """Asks a Gym server's /verify for the reward of one trajectory at a time.

    One instance lives in each of verl's reward workers, on that worker's event loop, with one
    pooled client. `config.reward.nemo_gym` holds the keys of `rlbridge.config.GymConfig` and two
    more, both optional: `ledger`, a folder for the record of outcomes, and `headers_file`, a JSON
    file of request headers, for keys that must not stand in a config.

    Raises:
        ConfigError: a key of `reward.nemo_gym` is unknown or its value is wrong.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        section = config.reward.get("nemo_gym")
        plain: Any = OmegaConf.to_container(section, resolve=True) if section else {}
        ledger = plain.pop("ledger", None)
        headers = plain.pop("headers_file", None)
        if headers:
            plain["headers"] = orjson.loads(Path(headers).read_bytes())
        self._gym = GymClient(GymConfig.parse(plain, where="reward.nemo_gym"))
        self._ledger = RewardLedger(Path(ledger)) if ledger else None

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Score the last trajectory of `data`, a DataProto of one rollout.

        Returns:
            `reward_score` (float) and `reward_extra_info` (flat floats).

        Raises:
            InvalidRewardError: there is no reward; the trajectory must not be trained on.
        """
        item = data[-1:][0]
        fields = item.non_tensor_batch
        text = self._response_text(item)
        reward = await self._gym.verify(_row(fields), text)
        self._record(reward, fields)
        if isinstance(reward, InvalidReward):
            raise InvalidRewardError(
                f"row {fields.get('index')} has no reward ({reward.failure}, fault: "
                f"{reward.fault}, {reward.attempts} attempts): {reward.detail}; "
                "its sample is masked",
                attempts=reward.attempts,
            )
        if reward.mask_sample:
            raise InvalidRewardError(
                f"row {fields.get('index')}: the environment asks to mask this sample"
            )
        return {"reward_score": reward.value, "reward_extra_info": _extra_info(reward)}

    def _response_text(self, item: Any) -> str:
        responses = item.batch["responses"]
        width = responses.shape[-1]
        length = int(item.batch["attention_mask"][-width:].sum())
        text: str = self.tokenizer.decode(responses[:length], skip_special_tokens=True)
        return text

    def _record(self, reward: Reward, fields: Any) -> None:
        if self._ledger is not None:
            self._ledger.record(
                reward,
                step=int(fields.get("global_steps", 0)),
                row=int(fields.get("index", -1)),
                uid=str(fields.get("uid", "")),
                sample=int(fields.get("session_id", 0)),
                split=str(fields.get(SPLIT, "train")),
            )


def _row(fields: Any) -> dict[str, Any]:
    text = fields.get(GYM_ROW)
    if text is None:
        raise ConfigError(
            f"the dataset emits no {GYM_ROW!r} column; set "
            "data.custom_cls.path=pkg://rlbridge_verl and data.custom_cls.name=NeMoGymDataset"
        )
    row: dict[str, Any] = orjson.loads(str(text))
    return row


def _extra_info(reward: ValidReward) -> dict[str, float]:
    parts = {f"gym/{name}": float(part) for name, part in reward.components.items()}
    return {"gym/attempts": float(reward.attempts), "gym/latency_s": reward.latency_s, **parts}
