"""Fakes that stand at the HTTP edge, and the pytest plugin that hands them out."""
