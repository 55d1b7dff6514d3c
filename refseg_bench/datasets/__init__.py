"""Datasets: loaders of the layouts their users have on disk."""
