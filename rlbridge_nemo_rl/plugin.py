"""Plugin entry point; imports without verl."""
