"""The built-in models under attack, one file each, found by entry point."""
