"""A small world to learn from: scenes of moving shapes, drawn, told about, and read back out of pictures."""
