"""The built-in datasets, one file each, found by entry point."""
