"""DecAF: training-free grounding by decomposed attention fusion (arXiv 2510.19592)."""

from refseg_bench.methods.decaf.method import DecAF

__all__ = ["DecAF"]
