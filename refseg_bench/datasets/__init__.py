"""Datasets: readers of the public formats, and the procedural world of the ``shapes`` sample."""
