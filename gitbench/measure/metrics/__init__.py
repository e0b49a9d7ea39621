"""The built-in leakage metrics, one file each."""
