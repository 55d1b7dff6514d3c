"""Masks, metrics, protocols and statistics."""
