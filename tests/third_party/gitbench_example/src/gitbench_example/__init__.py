"""A package that adds to gitbench without touching it."""
