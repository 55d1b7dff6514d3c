"""Model backbones and the algebra of their attention."""
