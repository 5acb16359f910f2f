"""A resources server of our own that speaks NeMo Gym's wire (extra `gateway`)."""
