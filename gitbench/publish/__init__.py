"""What people read: leaderboards, baselines, comparisons, and results of others."""
