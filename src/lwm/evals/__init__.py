"""What a model can do with a long context, measured."""
