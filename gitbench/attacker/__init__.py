"""From an observation to a reconstruction, and what attacks learn for it."""
