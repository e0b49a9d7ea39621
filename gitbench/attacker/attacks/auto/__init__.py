"""The ensemble that must choose without knowing the truth, and its criterion."""
