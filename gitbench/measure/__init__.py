"""From a case to its result: metrics, what a defense promises and costs, and the one module that knows the whole chain."""
