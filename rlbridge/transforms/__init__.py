"""Rollout rows into training data: read everything, refuse nothing in silence, lose no prompt."""
