"""From names and overrides to checked, digested, frozen configs."""
