"""Rewards from a NeMo Gym server, as a verl reward manager or reward function.

In a verl config::

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://rlbridge_verl
    reward.reward_manager.name=NeMoGymReward
    +reward.nemo_gym.url=http://127.0.0.1:8000

or, beside verl's own reward manager::

    reward.custom_reward_function.path=pkg://rlbridge_verl
    reward.custom_reward_function.name=nemo_gym_score
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000

A reward that could not be computed raises `InvalidRewardError`: verl's V1 trainer then drops this
trajectory, so that it is in no loss, baseline or deviation. `ValidRewardSampler` handles the
groups this leaves with one trajectory or none.
"""

import functools
from typing import Any

import orjson
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rlbridge_verl.scoring import InvalidRewardError, Origin, Scorer
from rlbridge_verl.settings import GymSection, gym_section, require_verl

__all__ = ["InvalidRewardError", "NeMoGymReward", "nemo_gym_score"]


class NeMoGymReward(RewardManagerBase):
    """Asks a Gym server's /verify for the reward of one trajectory at a time.

    One instance lives in each of verl's reward workers, on that worker's event loop, with one
    pooled client an environment. `config.reward.nemo_gym` holds the keys of
    `rlbridge_verl.settings.GymSection`.

    Raises:
        ConfigError: a key of `reward.nemo_gym` is unknown or its value is wrong; a reward key
            of verl 0.7 is set; another verl than 0.9.
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
        self._scorer = Scorer(gym_section(config))

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Score the last trajectory of `data`, a DataProto of one rollout.

        Returns:
            `reward_score` (float) and `reward_extra_info` (flat numbers).

        Raises:
            InvalidRewardError: there is no reward; the trajectory must not be trained on.
        """
        item = data[-1:][0]
        origin = Origin.of(item.non_tensor_batch)
        client = self._scorer.client(origin.environment)
        reward = await client.verify(origin.row, self._response_text(item))
        return await self._scorer.settle(reward, origin)

    def _response_text(self, item: Any) -> str:
        responses = item.batch["responses"]
        width = responses.shape[-1]
        length = int(item.batch["attention_mask"][-width:].sum())
        text: str = self.tokenizer.decode(responses[:length], skip_special_tokens=True)
        return text


async def nemo_gym_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Any = None,
    *,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **section: Any,
) -> dict[str, Any]:
    """The same as a `reward.custom_reward_function`, for verl's `naive` reward manager.

    Args:
        data_source: unused; the row says where it belongs.
        solution_str: the response as text.
        ground_truth: unused; the row holds the verifier's fields.
        extra_info: the row's column of that name, with the Gym row's JSON text in `gym_row`.
        reward_router_address: verl's; unused.
        reward_model_tokenizer: verl's; unused.
        **section: keys of `reward.nemo_gym`, from `reward_kwargs`.

    Returns:
        `score` and flat numbers; never `acc`, of which verl takes a missing one for 0.

    Raises:
        InvalidRewardError: there is no reward; the trajectory must not be trained on. Other
            reward managers than `naive` may turn this into a number (`rate_limited` does).
    """
    fields = {"extra_info": extra_info, **(extra_info or {})}
    origin = Origin.of(fields)
    scorer = _scorer(orjson.dumps(section, default=_plain, option=orjson.OPT_SORT_KEYS))
    reward = await scorer.client(origin.environment).verify(origin.row, solution_str)
    settled = await scorer.settle(reward, origin)
    return {"score": settled["reward_score"], **settled["reward_extra_info"]}


@functools.cache
def _scorer(section: bytes) -> Scorer:
    require_verl()
    where = "reward.custom_reward_function.reward_kwargs"
    return Scorer(GymSection.parse(orjson.loads(section), where=where))


def _plain(value: Any) -> Any:
    """Config nodes as plain data."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True)
