"""A codec comes back as it went; a directory that is wrong is refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import PatchCodecConfig, VQGANConfig
from lwm.vqgan.quantize import Codebook, Levels
from lwm.weights.codec_store import CONFIG, TENSORS, load_codec, read_codec_config, save_codec

PATCH = PatchCodecConfig(encoder_width=32, decoder_width=16, fine_widths=(8, 8), quantizer=Levels((8, 8, 8)))
VQGAN = VQGANConfig(
    resolution=32,
    hidden_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    quantizer=Codebook(32, 4),
    norm_groups=4,
)


def drawn(config) -> object:
    """Parameters out of numpy: to compile the drawing of so many small tensors would take longer than all else here."""
    rng = np.random.default_rng(0)
    shapes = declared.abstract(declare(config), jnp.float32)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


@pytest.fixture
def mesh():
    return make_mesh(MeshShape(), jax.devices()[:1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("config", [PATCH, VQGAN], ids=["patch", "vqgan"])
def test_there_and_back(tmp_path, mesh, config, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), drawn(config))
    save_codec(tmp_path / "model", config, params, dtype)
    assert read_codec_config(tmp_path / "model") == config
    frames = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
    codec = load_codec(tmp_path / "model", mesh)
    np.testing.assert_array_equal(codec.encode(frames), FrameCodec(params, config, mesh).encode(frames))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("architecture"), "its architecture is None: known are vqgan, patch"),
        (lambda c: c["quantizer"].update(kind="gumbel"), "its kind is 'gumbel'"),
        (lambda c: c["quantizer"].update(levels="8,8"), "which is not a list of int"),
        (lambda c: c.update(resolution=33), "must be even and divide"),
        (lambda c: c.update(resolution="32"), "which is not int"),
        (lambda c: c.update(colour=3), "unknown field 'colour'"),
        (lambda c: c.update(decoder_width=17), "has shape"),
        (lambda c: c.update(encoder_layers=10**9), "its encoder_layers or decoder_layers asks for 4000000008 tensors"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path, mesh, change, message):
    save_codec(tmp_path, PATCH, drawn(PATCH))
    values = json.loads((tmp_path / CONFIG).read_text())
    change(values)
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as caught:
        load_codec(tmp_path, mesh)
    assert str(tmp_path) in str(caught.value)


def test_broken_files_are_refused(tmp_path, mesh):
    with pytest.raises(UserError, match="no codec of pictures"):
        load_codec(tmp_path, mesh)
    save_codec(tmp_path, PATCH, drawn(PATCH))
    content = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(content[:1000])
    with pytest.raises(UserError, match="cannot read the tensors"):
        load_codec(tmp_path, mesh)
    for broken, message in {"[": "cannot read", "[]": "not a JSON object", "[" * 100_000: "too deep"}.items():
        (tmp_path / CONFIG).write_text(broken)
        with pytest.raises(UserError, match=message):
            load_codec(tmp_path, mesh)
