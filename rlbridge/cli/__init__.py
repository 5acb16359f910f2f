"""The `rlbridge` command: `main.py` and a file per subcommand."""
