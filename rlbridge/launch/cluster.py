"""A run's command on a cluster: what to type for `ray job submit` and for Slurm. Starts nothing.

The command is `rlbridge run` itself, so that its checks, its record and its clean stops are the
same there. The run's folder, its rows and its policy must lie where every node sees them.
"""

import shlex
from collections.abc import Sequence

from rlbridge.run_config import RunConfig

RAY_PORT = 6379


def ray_job(argv: Sequence[str]) -> str:
    """The command that hands a run to a Ray cluster that is up.

    Args:
        argv: the run's own command, without `--dry-run`.
    """
    inner = shlex.join([*argv, "ray.address=auto"])
    return f'ray job submit --address "http://$RAY_HEAD:8265" --working-dir . -- {inner}'


def slurm_script(config: RunConfig, argv: Sequence[str], name: str) -> str:
    """A batch script that brings a Ray cluster up on the job's nodes and runs on it.

    Args:
        config: the run; its trainer section gives nodes and GPUs.
        argv: the run's own command, without `--dry-run`.
        name: the job's.
    """
    trainer = config.trainer
    inner = shlex.join([*argv])
    return f"""\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={trainer.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={trainer.gpus_per_node}
#SBATCH --exclusive
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \\
  ray start --head --port={RAY_PORT} --block &
for try in $(seq 60); do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray status && break || sleep 2
done
if [ "$SLURM_NNODES" -gt 1 ]; then
  srun --overlap --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \\
    ray start --address="$head:{RAY_PORT}" --block &
fi
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \\
  {inner} "ray.address=$head:{RAY_PORT}"
"""
