"""The NeMo-RL backend."""
