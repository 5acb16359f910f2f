"""Pure functions on token IDs and logprobs that keep training data exactly what was sampled."""
