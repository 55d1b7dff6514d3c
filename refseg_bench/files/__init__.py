"""The only door from the package to the disk's formats."""
