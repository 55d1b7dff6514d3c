"""Training of the tiny models (docs/tiny-models.md)."""
