"""`python -m rlbridge` is the `rlbridge` command."""

from rlbridge.cli.main import main

main()
