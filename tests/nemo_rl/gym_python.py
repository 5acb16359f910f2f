"""A Python that has both NeMo-RL and NeMo Gym, for NeMo-RL's Gym actor and the servers it starts.

NeMo-RL's workers share one minor version of Python, and Gym's wheel asks for a later one than this
environment may have; Gym's own code runs on both. So: an environment of a few files, which takes
its packages from this one and, where those lack any, from the one of NeMo Gym. Nothing is
installed, and nothing is written into either.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil

from rlbridge.testing.real_servers import nemo_gym_python

SERVERS = (
    "resources_servers/mcqa",
    "responses_api_models/vllm_model",
    "responses_api_agents/simple_agent",
)
_NEEDED = (
    "import nemo_gym.cli.env, nemo_gym.rollout_collection, responses_api_models.vllm_model.app, "
    "responses_api_agents.simple_agent.app, resources_servers.mcqa.app"
)
# Gym and its packages would leave files beside their code and under their servers' folders.
QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}


def make(folder: Path) -> Path:
    """The environment's interpreter; `folder` becomes what Gym calls `uv_venv_dir`, too."""
    home = folder / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python*/site-packages"))
    here = sysconfig.get_path("purelib")
    (site / "a_ours.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    gyms = _gyms_packages()
    (site / "b_gym.pth").write_text(f"{gyms}\n")
    # Gym pins it, and fails with a later one, which this environment may have.
    (site / "openai").symlink_to(gyms / "openai")
    for server in SERVERS:
        link = folder / server / ".venv"
        link.parent.mkdir(parents=True)
        link.symlink_to(home)
    return home / "bin" / "python"


def why_unusable(python: Path) -> str:
    """Why Gym can't run there, or empty."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", _NEEDED],
        env=os.environ | QUIET, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else f"nemo-gym doesn't run here: {done.stderr[-300:]}"


def processes(folder: Path | str) -> list[psutil.Process]:
    """Gym's servers whose config names a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.environ().get("NEMO_GYM_CONFIG_DICT", ""):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _gyms_packages() -> Path:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run(
        [nemo_gym_python(), "-c", ask], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())
