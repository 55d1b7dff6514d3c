"""Scoring protocols, one rule set per class."""
