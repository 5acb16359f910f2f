"""Gym's servers as NeMo-RL's actor starts them: where they listen, and their processes.

NeMo-RL has Gym's head server listen on every interface, and whoever reaches it reads Gym's whole
config there, with the keys of judges' APIs. Here it listens where Gym's other servers do
(`env.nemo_gym.default_host`): by default on loopback behind our gateway, which is on the same
machine, and else at the node's address, as NeMo-RL sets it.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import psutil

from rlbridge_nemo_rl.gym_calls import GATEWAY

_GYM = "initial_global_config_dict"
_HOST = "default_host"
_LOOPBACK = "127.0.0.1"


def on_loopback(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """An actor's config whose servers listen on loopback, unless it says where, or has no gateway.

    Args:
        cfg: `NemoGymConfig`, and what `ActorBehind` adds.
    """
    if cfg.get(GATEWAY) is None:
        return dict(cfg)
    return {**cfg, _GYM: {_HOST: _LOOPBACK, **(cfg.get(_GYM) or {})}}


def processes() -> list[psutil.Process]:
    """What this process has started, and what that has: all of it is Gym's."""
    return psutil.Process().children(recursive=True)


def keep_head_in() -> None:
    """Let the Gym that this process starts have its head server listen where the others do.

    NeMo-RL writes 0.0.0.0 over whatever a config says, so the name by which it takes Gym's
    `RunHelper` stands for one that writes it anew. Does nothing where there is no Gym.
    """
    if importlib.util.find_spec("nemo_gym") is None:
        return
    cli: Any = importlib.import_module("nemo_gym.cli")
    original: Any = cli.RunHelper

    class HeadKeptIn(original):  # type: ignore[misc,valid-type,unused-ignore]
        def start(self, global_config_dict_parser_config: Any) -> None:
            given = global_config_dict_parser_config.initial_global_config_dict
            given["head_server"]["host"] = given[_HOST] or _LOOPBACK  # as Gym reads it
            super().start(global_config_dict_parser_config)

    cli.RunHelper = HeadKeptIn
