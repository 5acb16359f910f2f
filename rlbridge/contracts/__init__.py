"""What flows between a policy, an environment and a trainer. No I/O, no torch, no framework."""
