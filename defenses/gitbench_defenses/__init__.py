"""The built-in defenses, one file each, found by entry point."""
