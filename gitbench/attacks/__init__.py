"""The built-in attacks, one file each, found by entry point."""
