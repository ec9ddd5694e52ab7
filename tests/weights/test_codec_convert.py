"""A codec goes through every form and comes back bit for bit; which form it has is told by looking."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import PatchCodecConfig, VQGANConfig
from lwm.vqgan.quantize import Codebook, Levels
from lwm.weights.codec_convert import convert_codec, read_codec
from lwm.weights.codec_store import load_codec, save_codec
from lwm.weights.diffusers_codec import TENSOR_FILES

GOLDEN = Path(__file__).parent.parent / "golden" / "vqgan.pkl"
SMALL = VQGANConfig(16, 4, (1, 2), 1, z_channels=6, quantizer=Codebook(16, 5), norm_groups=2, pixel_range=(0, 1))
PATCH = PatchCodecConfig(encoder_width=8, decoder_width=8, fine_widths=(8, 8), quantizer=Levels((4, 4)))


def drawn(config) -> object:
    rng = np.random.default_rng(0)
    shapes = declared.abstract(declare(config), jnp.float32)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


def assert_equal(first, second) -> None:
    assert first[0] == second[0]
    for name, leaf in declared.named_leaves(first[1]).items():
        np.testing.assert_array_equal(leaf, declared.named_leaves(second[1])[name], strict=True, err_msg=name)


def test_from_the_pickle_through_every_form(tmp_path):
    ours, theirs, again = tmp_path / "ours", tmp_path / "theirs", tmp_path / "again"
    rows = [
        convert_codec(GOLDEN, ours, "lwm", resolution=64),
        convert_codec(ours, theirs, "hf"),
        convert_codec(theirs, again, "lwm"),
        convert_codec(again, tmp_path / "copy", "lwm"),
    ]
    pickled = read_codec(GOLDEN, resolution=64)
    for directory in (ours, theirs, again, tmp_path / "copy"):
        assert_equal(read_codec(directory), pickled)
    stored = [(ours, "codec.safetensors"), (theirs, TENSOR_FILES[0]), (again, "codec.safetensors")]
    for written, (directory, file) in zip(rows, stored, strict=False):
        tensors = load_file(directory / file)
        assert {(row.name, row.shape, row.dtype) for row in written} == {
            (name, tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()
        }
    changes = [{row.name: (row.origin, row.change) for row in written} for written in rows]
    assert changes[0]["encoder.conv_in.kernel"] == ("", "")
    assert changes[1]["encoder.conv_in.weight"] == ("encoder.conv_in.kernel", "transposed")
    assert changes[1]["encoder.conv_in.bias"] == ("encoder.conv_in.bias", "")
    upsampled = ("decoder.up_blocks.1.upsamplers.0.conv.weight", "transposed")
    assert changes[2]["decoder.levels.1.resample.kernel"] == upsampled
    assert all(change == (name, "") for name, change in changes[3].items())


def test_a_codec_with_other_pixels_sees_the_same_frames_after_it_was_converted(tmp_path):
    mesh, params = make_mesh(MeshShape(), jax.devices()[:1]), drawn(SMALL)
    save_codec(tmp_path / "ours", SMALL, params)
    convert_codec(tmp_path / "ours", tmp_path / "theirs", "hf")
    frames = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    config, read = read_codec(tmp_path / "theirs")
    codes = FrameCodec(read, config, mesh).encode(frames)
    np.testing.assert_array_equal(codes, load_codec(tmp_path / "ours", mesh).encode(frames))
    assert len(np.unique(codes)) > 2


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_what_is_written_is_float32(dtype, tmp_path):
    save_codec(tmp_path / "ours", SMALL, drawn(SMALL), dtype="float16")
    tensors = load_file(tmp_path / "ours" / "codec.safetensors")
    save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, tmp_path / "ours" / "codec.safetensors")
    rows = convert_codec(tmp_path / "ours", tmp_path / "theirs", "hf")
    assert {(row.stored, row.dtype) for row in rows} == {(dtype, "float32")}
    theirs = load_file(tmp_path / "theirs" / TENSOR_FILES[0])
    np.testing.assert_array_equal(theirs["quantize.embedding.weight"], tensors["codebook"].astype(np.float32))


def test_the_codec_of_a_model_directory(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "lwm"}')
    with pytest.raises(UserError, match="no codec at"):
        read_codec(tmp_path)
    save_codec(tmp_path, PATCH, drawn(PATCH))
    assert_equal(read_codec(tmp_path), (PATCH, drawn(PATCH)))
    with pytest.raises(UserError, match="separate squares"):
        convert_codec(tmp_path, tmp_path / "theirs", "hf")
    with pytest.raises(UserError, match=r"already holds codec\.json"):
        convert_codec(GOLDEN, tmp_path, "lwm", resolution=64)
    assert_equal(read_codec(tmp_path), (PATCH, drawn(PATCH)))


def test_the_resolution(tmp_path):
    with pytest.raises(UserError, match=r"vqgan\.pkl: the VQGAN has 3 levels, which LWM's has not: give its resol"):
        read_codec(GOLDEN)
    with pytest.raises(UserError, match=r"vqgan\.pkl: resolution 66 is not a multiple of 4"):
        read_codec(GOLDEN, resolution=66)
    convert_codec(GOLDEN, tmp_path / "ours", "lwm", resolution=64)
    assert read_codec(tmp_path / "ours", resolution=128)[0].resolution == 128


def test_what_cannot_be_converted_leaves_nothing(tmp_path):
    for source, message in {
        tmp_path / "missing": "no codec at .*missing: give LWM's pickled VQGAN",
        tmp_path: "no codec at",
        Path(__file__): "is not a readable pickle",
    }.items():
        with pytest.raises(UserError, match=message):
            convert_codec(source, tmp_path / "new", "hf")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write the codec to"):
        convert_codec(GOLDEN, tmp_path / "file", "lwm", resolution=64)


def test_a_codec_of_integers_is_refused(tmp_path):
    save_codec(tmp_path, SMALL, drawn(SMALL))
    save_file(
        load_file(tmp_path / "codec.safetensors") | {"to_code.bias": np.zeros(5, np.int32)},
        tmp_path / "codec.safetensors",
    )
    with pytest.raises(UserError, match=r"the tensor to_code\.bias is of int32"):
        read_codec(tmp_path)
