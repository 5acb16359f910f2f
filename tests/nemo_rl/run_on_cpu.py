"""`rlbridge` with the driver that trains by NeMo-RL's async GRPO on a CPU.

python -m tests.nemo_rl.run_on_cpu run --framework nemo_rl --config run.yaml
"""

from rlbridge.cli.main import app
from rlbridge_nemo_rl import backend

if __name__ == "__main__":
    backend.DRIVER = "tests.nemo_rl.async_driver_on_cpu"
    app()
