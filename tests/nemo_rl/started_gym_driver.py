"""`gym_driver_on_cpu` where NeMo-RL's actor starts Gym, in the Python of `GYM_ACTOR_PYTHON`.

    python -m tests.nemo_rl.started_gym_driver --config native.yaml

Notes in `listening.json` at which addresses Gym's servers listen; then the actor's process dies.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.nemo_rl import async_gym_driver_on_cpu, gym_driver_on_cpu, gym_python


def note_and_kill(config: Any, actor: Any) -> None:
    """Note where the servers listen, and kill the actor's process where it can start again."""
    import ray

    head = ray.get(actor.__ray_call__.remote(lambda gym: gym.head_server_port))
    pids = {process.pid for process in gym_python.processes(config.env["nemo_gym"]["uv_venv_dir"])}
    listening = [one for one in psutil.net_connections("tcp") if one.status == "LISTEN"]
    noted = {
        "head": {_ip(one) for one in listening if one.laddr.port == head},
        "servers": {_ip(one) for one in listening if one.pid in pids},
    }
    path = Path(config.rlbridge["run_dir"]) / "listening.json"
    path.write_text(json.dumps({name: sorted(found) for name, found in noted.items()}))
    if not hasattr(actor, "set_tokenizer"):  # the head's is told its tokenizer once
        os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def _ip(one: Any) -> str:
    ip: str = one.laddr.ip
    return ip.removeprefix("::ffff:")


if __name__ == "__main__":
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY

    # Its own is a `uv run` with Gym's extra, of which `grpo.setup` makes an environment.
    python = os.environ["GYM_ACTOR_PYTHON"]
    ACTOR_ENVIRONMENT_REGISTRY["nemo_rl.environments.nemo_gym.NemoGym"] = python
    native = yaml.safe_load(Path(sys.argv[-1]).read_text())
    make = gym_driver_on_cpu.setup
    if native["grpo"]["async_grpo"]["enabled"]:
        async_gym_driver_on_cpu.collect_here()
        make = async_gym_driver_on_cpu.setup
    sys.exit(gym_driver_on_cpu.main(sys.argv[1:], note_and_kill, make))
