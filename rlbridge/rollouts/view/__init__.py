"""Shows rollouts to people, on a page of this machine alone. Never changes a rollout file."""
