"""The built-in modalities, one file each."""
