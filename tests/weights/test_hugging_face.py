import numpy as np

from lwm.weights.hugging_face import interleave


def test_halves_become_pairs() -> None:
    halves = np.array([["x0", "x1", "x2", "y0", "y1", "y2"]])
    assert interleave(halves).tolist() == [["x0", "y0", "x1", "y1", "x2", "y2"]]
