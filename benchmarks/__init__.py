"""Benchmarks: each is a module to run, with --quick (under 45 s) and --json."""
