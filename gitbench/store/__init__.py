"""Results on disk: what one case measured, the folder that keeps it, and its picture."""
