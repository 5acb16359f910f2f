"""What the agent loops of one worker process share. verl makes a loop anew for each trajectory.

Clients, the ledger, the proven chat template and the parser's style are made once a process, on
the first trajectory. Nothing here is about one rollout.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from rlbridge.contracts.tokens import Encoding
from rlbridge.onpolicy.bridge import Bridge
from rlbridge.onpolicy.tokenizer import encoding_of
from rlbridge.parsing.style import Style, detect
from rlbridge_verl.scoring import Scorer
from rlbridge_verl.settings import GymSection, gym_section


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a rollout may be.

    Attributes:
        response_tokens: tokens from the first sampled one on, observations included.
        max_turns: answers of the policy.
        max_tool_output_chars: of one tool's answer.
        parallel: a turn's tool calls are sent at once.
    """

    response_tokens: int
    max_turns: int
    max_tool_output_chars: int
    parallel: bool

    @classmethod
    def of(cls, rollout: Any) -> "Limits":
        """From `actor_rollout_ref.rollout`: verl's own keys of `multi_turn`."""
        turns = rollout.multi_turn
        return cls(
            response_tokens=int(rollout.response_length),
            max_turns=int(turns.max_assistant_turns or 16),
            max_tool_output_chars=int(turns.max_tool_response_length),
            parallel=int(turns.max_parallel_calls or 1) > 1,
        )


@dataclass(frozen=True, slots=True)
class Worker:
    """Shared by the agent loops of one process."""

    section: GymSection
    scorer: Scorer
    bridge: Bridge
    style: Style
    encoding: Encoding
    ends: frozenset[int]
    limits: Limits
    max_model_len: int | None


# verl's worker has one config and one tokenizer for its whole life; both are kept, so that no
# later object gets their identity.
_workers: dict[tuple[int, int], tuple[Any, Worker]] = {}


def worker_of(config: Any, tokenizer: Any) -> Worker:
    """The process's worker for this verl config, made on first use.

    Raises:
        ConfigError: `reward.nemo_gym` is wrong.
    """
    key = (id(config), id(tokenizer))
    if key not in _workers:
        _workers[key] = (config, _make(config, tokenizer))
    return _workers[key][1]


def _make(config: Any, tokenizer: Any) -> Worker:
    section = gym_section(config)
    rollout = config.actor_rollout_ref.rollout
    given = config.data.get("apply_chat_template_kwargs") or {}
    options: Any = OmegaConf.to_container(given) if OmegaConf.is_config(given) else dict(given)
    bridge = Bridge(tokenizer, ends=_engine_ends(config, tokenizer), **options)
    template = tokenizer.chat_template
    if not isinstance(template, str):  # several by name: the one used when there are tools
        template = dict(template).get("tool_use") or dict(template).get("default") or ""
    return Worker(
        section=section,
        scorer=Scorer(section),
        bridge=bridge,
        style=detect(template),
        encoding=encoding_of(tokenizer),
        ends=_engine_ends(config, tokenizer),
        limits=Limits.of(rollout),
        max_model_len=int(rollout.max_model_len) if rollout.max_model_len else None,
    )


def _engine_ends(config: Any, tokenizer: Any) -> frozenset[int]:
    """The IDs at which the engine stops: the tokenizer's EOS and the generation config's."""
    from transformers import GenerationConfig

    found = {tokenizer.eos_token_id} - {None}
    path = config.actor_rollout_ref.model.path
    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        eos = None
    found |= set(eos) if isinstance(eos, list) else {eos} - {None}
    return frozenset(int(token) for token in found)
