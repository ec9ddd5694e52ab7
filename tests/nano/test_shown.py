"""What codes show is counted as it is drawn."""

import jax
import numpy as np

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import abstract
from lwm.nano.shown import count_shown, squares
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Codebook
from lwm.world.scene import Scene, Sprite

CODEC = PatchCodecConfig(decoder_width=8, fine_widths=(8, 8), quantizer=Codebook(64, 8))


def test_squares_show_parts_colours_and_grounds() -> None:
    scene = Scene("grass", (Sprite("square", "red", "small", 0, 0),))
    found = list(squares(scene, 0, 8))
    assert len(found) == 16
    assert ("colour", "red") in found[0] and ("ground", "grass") in found[0] and "bare" not in found[0]
    assert "bare" in found[15] and not any(feature[0] == "colour" for feature in found[15])
    elsewhere = list(squares(Scene("sand", (Sprite("square", "blue", "small", 2, 2),)), 0, 8))
    part = next(feature for feature in found[0] if feature[0] == "part")
    assert part in elsewhere[5]  # two places on is one square on: the same part of the shape


def test_squares_on_which_two_shapes_meet_show_nothing() -> None:
    scene = Scene("grass", (Sprite("square", "red", "big", 1, 1), Sprite("circle", "blue", "big", 3, 1)))
    assert [] in list(squares(scene, 0, 8))


def test_shares_are_counted_by_code() -> None:
    rng = np.random.default_rng(0)
    shapes = abstract(declare(CODEC), np.float32)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes)
    codec = FrameCodec(params, CODEC, make_mesh(MeshShape(), jax.devices()[:1]))
    table = count_shown(codec, 120)
    assert table.shape[0] == 64 and 20 < table.shape[1] < 250
    assert 0 <= table.min() <= table.max() <= 1
    used = table.any(axis=1)
    assert used.sum() > 1
    # a ground and its phase, and either no shape or five things about one
    features = table[used].sum(axis=1)
    assert features.min() > 3 - 1e-4 and features.max() < 7 + 1e-4 and features.max() > 3.1
    np.testing.assert_allclose(table, count_shown(codec, 120))
