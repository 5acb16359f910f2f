"""The verl backend."""
