"""The decoder: what it is (`config`), its layers, the forward pass, the loss, and the key-value cache."""
