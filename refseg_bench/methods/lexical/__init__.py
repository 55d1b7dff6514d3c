"""Grounding from the words alone: no model, no training; the honest floor of every table."""

from refseg_bench.methods.lexical.method import Lexical

__all__ = ["Lexical"]
