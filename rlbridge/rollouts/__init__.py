"""Collects rollouts, scores them again, and shows them. Loses no row and writes none twice."""
