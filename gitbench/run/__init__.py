"""The options and the matrix of a run, and the bench that measures and judges its cases."""
