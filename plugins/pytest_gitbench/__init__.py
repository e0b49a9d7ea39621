"""The pytest plugin of gitbench: thin, no tensors in it."""
