"""The built-in attacks, one file or one package each, found by entry point."""
