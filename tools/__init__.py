"""Scripts that make what the package ships: sample sets, tables, tiny models."""
