"""Launches a training run: checks first, starts what it needs, watches, and sums up."""
