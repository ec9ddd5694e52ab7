"""The codec's contract: any number of frames, any mesh, the same codes; a patch's code depends on the patch alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.vqgan import model
from lwm.vqgan.codec import FrameCodec, declare, to_pixels
from lwm.vqgan.config import PatchCodecConfig, VQGANConfig
from lwm.vqgan.quantize import Codebook, Levels

PATCH = PatchCodecConfig(encoder_width=32, decoder_width=16, fine_widths=(8, 8), quantizer=Levels((8, 8, 8)))
VQGAN = VQGANConfig(
    resolution=32,
    hidden_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    quantizer=Codebook(32, 4),
    norm_groups=4,
)


def drawn(config) -> object:
    """Parameters out of numpy: to compile the drawing of so many small tensors would take longer than all else here."""
    rng = np.random.default_rng(0)
    shapes = declared.abstract(declare(config), jnp.float32)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


@pytest.fixture(scope="module", params=[PATCH, VQGAN], ids=["patch", "vqgan"])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def params(config):
    return drawn(config)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(256, size=(13, 32, 32, 3), dtype=np.uint8)


def test_codes_and_frames_have_the_promised_shapes(config, params, frames):
    codec = FrameCodec(params, config, make_mesh(MeshShape(), jax.devices()[:1]))
    codes = codec.encode(frames)
    assert codes.shape == (13, codec.tokens_per_frame)
    assert codes.dtype == np.int32
    assert 0 <= codes.min() <= codes.max() < codec.num_codes
    pictures = codec.decode(codes)
    assert (pictures.shape, pictures.dtype) == (frames.shape, np.uint8)
    assert codec.encode(frames[:0]).shape == (0, codec.tokens_per_frame)
    assert codec.decode(codes[:0]).shape == (0, 32, 32, 3)


def test_neither_mesh_nor_company_changes_a_frames_codes(config, params, frames):
    one = FrameCodec(params, config, make_mesh(MeshShape(), jax.devices()[:1]))
    eight = FrameCodec(params, config, make_mesh(MeshShape.parse("dp=2,fsdp=2,tp=1,sp=2")))
    codes = one.encode(frames)
    np.testing.assert_array_equal(eight.encode(frames), codes)
    np.testing.assert_array_equal(np.concatenate([one.encode(frames[:1]), one.encode(frames[1:4])]), codes[:4])
    difference = eight.decode(codes).astype(int) - one.decode(codes)
    assert np.abs(difference).max() <= 1  # a value half-way between two integers may go either way


def test_what_does_not_fit_is_refused(config, params, frames):
    codec = FrameCodec(params, config, make_mesh(MeshShape(), jax.devices()[:1]))
    with pytest.raises(UserError, match="32 x 32 pixels"):
        codec.encode(frames[:, :16, :16])
    with pytest.raises(UserError, match="codes a frame"):
        codec.decode(np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match=f"codes 0 to {codec.num_codes - 1}"):
        codec.decode(np.full((1, codec.tokens_per_frame), codec.num_codes, np.int32))


def test_a_patch_codecs_code_depends_on_its_own_square(frames):
    params = drawn(PATCH)
    codec = FrameCodec(params, PATCH, make_mesh(MeshShape(), jax.devices()[:1]))
    changed = frames[:1].copy()
    changed[:, 8:16, 16:24] = 255 - changed[:, 8:16, 16:24]
    differs = (codec.encode(changed) != codec.encode(frames[:1])).reshape(4, 4)
    assert {tuple(place) for place in np.argwhere(differs)} == {(1, 2)}


def test_a_network_that_was_trained_on_other_pixels(frames):
    """Black and white are what its range says; between them nothing but rounding differs."""
    params, mesh = drawn(VQGAN), make_mesh(MeshShape(), jax.devices()[:1])
    config = replace(VQGAN, pixel_range=(0, 1))
    pixels = to_pixels(jnp.asarray(frames[:2]))
    vectors = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 4)), jnp.float32)
    np.testing.assert_allclose(
        model.encode(params, pixels, config), model.encode(params, (pixels + 1) / 2, VQGAN), atol=1e-5
    )
    np.testing.assert_allclose(
        (model.decode(params, vectors, config) + 1) / 2, model.decode(params, vectors, VQGAN), atol=1e-5
    )
    assert FrameCodec(params, config, mesh).digest() != FrameCodec(params, VQGAN, mesh).digest()


@pytest.mark.parametrize("change", [{"pixel_range": (1, 1)}, {"pixel_range": (0,)}, {"channel_multipliers": (1,) * 17}])
def test_a_configuration_that_cannot_be(change):
    with pytest.raises(UserError, match=r"what white is|1 to 16"):
        replace(VQGAN, **change)
