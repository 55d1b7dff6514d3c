"""refseg_bench: a benchmark harness for referring and reasoning segmentation of images and video."""

__version__ = "0.1.0"
