"""How fast gradients are matched, side by side with another implementation: ``python -m benchmarks.speed``."""
