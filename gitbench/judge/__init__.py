"""From figures to verdicts: intervals, flags, when a cell passes, and the worst case of all attacks."""
