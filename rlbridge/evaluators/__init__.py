"""Verifiers built in: pure functions from a response and a row to a reward."""
