"""The NeMo-RL backend. Importing it doesn't need nemo_rl."""
