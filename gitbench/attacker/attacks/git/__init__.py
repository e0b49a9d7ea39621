"""GIT: back-propagation read backwards, layer by layer (arXiv 2505.20026)."""
