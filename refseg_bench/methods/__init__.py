"""Grounding methods and bounds."""
