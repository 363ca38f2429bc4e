"""Measures of the engine against its peers, as ratios of two things in one run."""
