"""The suites that gitbench ships, one TOML file each. docs/suites.md has the format; another package's are found by its entry point."""
