"""A pytest plugin: rlbridge is registered while NeMo-RL's own tests run."""

from rlbridge_nemo_rl import register

register()
