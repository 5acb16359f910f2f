#!/usr/bin/env python3
"""Make .venv-nemo-rl: NeMo-RL from a checkout, on a CPU, for rlbridge's tests against it.

    tools/nemo_rl_env.py ~/src/RL

NeMo-RL is no package: people use it from a clone, with `uv run`. Its own environment wants CUDA;
this one holds what its rollouts, environments, data and GRPO loop import, with a CPU torch. The
checkout is put on the path, never installed: `pip install -e` would write into it. Another
checkout, of another version too, takes its place at once: the packages stay.
Standard library only; run by any Python 3.9+.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import env as base

HOME = base.ROOT / ".venv-nemo-rl"
# What NeMo-RL imports on the way to a GRPO step without a GPU, from v0.6.0 to its head of 2026-08.
# Only v0.6.0 imports decord2 and megatron-core.
IMPORTED = [
    "torch==2.13.0", "setuptools>=78.1.1,<82", "numpy", "pillow", "requests",
    "transformers>=5.5,<5.9", "ray>=2.55.1", "wandb", "datasets>=4", "hydra-core", "pyzmq",
    "nvidia-ml-py", "soundfile", "mlflow", "swanlab", "tensorboard", "torchdata", "tensordict",
    "math-verify", "accelerate", "prometheus-client", "matplotlib", "decord2", "megatron-core",
]  # fmt: skip
# NeMo Gym's packages come from .venv-gym where NeMo-RL starts Gym; this one is compiled.
TESTED = ["pytest>=8.2", "pytest-asyncio>=0.24", "hypothesis>=6.100", "yappi"]

# NeMo-RL is written for Python 3.13; on 3.11 pydantic refuses typing's own TypedDict.
TYPED_DICT = (
    "import sys, typing; t = sys.version_info < (3, 12) and __import__('typing_extensions'); "
    "t and typing.__dict__.update(TypedDict=t.TypedDict, NotRequired=t.NotRequired)"
)


def make(checkout: Path) -> None:
    """Build the environment unless it is made of the same already; point it at a checkout."""
    if not (checkout / "nemo_rl" / "algorithms").is_dir():
        sys.exit(f"setup: {checkout} is no NeMo-RL checkout (it has no nemo_rl/algorithms)")
    inputs = [base.ROOT / "pyproject.toml", Path(__file__)]
    mark = base.fingerprint(inputs, "")
    if not base.is_fresh(HOME, mark):
        _build()
        (HOME / base.STAMP).write_text(mark)
    site = next((HOME / "lib").glob("python*/site-packages"))
    (site / "nemo_rl_checkout.pth").write_text(f"{checkout}\n{TYPED_DICT}\n")


def _build() -> None:
    python = base.find_python(["3.11", "3.12", "3.13"])
    if python is None:
        sys.exit("setup: NeMo-RL's test environment needs Python 3.11, 3.12 or 3.13")
    started = time.monotonic()
    uv = base.find_uv()
    base.say(f"building .venv-nemo-rl with {python}")
    if not (HOME / "bin" / "python").exists():
        base.run([uv, "venv", "--quiet", "--python", python, str(HOME)])
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode"]
    install += ["--python", str(HOME / "bin" / "python")]
    links = os.environ.get("PIP_FIND_LINKS")
    if links is None:
        install += ["--torch-backend", "cpu"]
    ours = ["--editable", ".[gateway,evaluators,data,plot]"]
    base.run([*install, *IMPORTED, *TESTED, *ours], {"UV_FIND_LINKS": links} if links else None)
    base.check_no_cuda(HOME)
    base.say(f".venv-nemo-rl is ready after {time.monotonic() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a clone of NVIDIA-NeMo/RL, at v0.7.0 say")
    make(parser.parse_args().checkout.expanduser().resolve())


if __name__ == "__main__":
    main()
