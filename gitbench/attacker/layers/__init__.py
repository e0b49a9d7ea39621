"""A model read as layers: its chain, its graph, and the linear algebra of one layer."""
