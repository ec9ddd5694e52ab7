"""Training: the optimizer, the step as a pure function, checkpoints, metrics, and the loop that joins them."""
