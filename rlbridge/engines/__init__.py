"""Inference engines: exact token IDs in, sampled IDs with logprobs out, over several wires."""
