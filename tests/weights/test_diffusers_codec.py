"""`diffusers` computes the same from what we write, and we from what it writes; all else is refused by name."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.vqgan.config import PatchCodecConfig, VQGANConfig
from lwm.vqgan.model import VQGAN, declare, decode, encode
from lwm.vqgan.quantize import Codebook, Levels, codes_of, vectors_of
from lwm.weights.diffusers_codec import CONFIG, TENSOR_FILES, assumptions, read_diffusers, write_diffusers
from lwm.weights.vqgan_pickle import config_from_shapes, from_pickle, read_arrays

TENSORS = TENSOR_FILES[0]
GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = VQGANConfig(
    resolution=16,
    hidden_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=6,
    quantizer=Codebook(16, 5),
    norm_groups=2,
)


def drawn(config: VQGANConfig) -> VQGAN:
    rng = np.random.default_rng(0)
    shapes = declared.abstract(declare(config), jnp.float32)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_diffusers(tmp_path / "codec", SMALL, drawn(SMALL))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers(torch):
    return pytest.importorskip("diffusers")


def as_ours(tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


def assert_the_same(model, config: VQGANConfig, params: VQGAN, torch) -> None:
    """Vectors, codes and pixels of a `VQModel` and of ours; its pixels are of the range it was trained on."""
    black, white = config.pixel_range
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, config.resolution, config.resolution, 3)).astype(np.float32)
    theirs = torch.from_numpy(black + (pixels + 1) / 2 * (white - black)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        latents = model.encode(theirs).latents
        codes = model.quantize(latents)[2][2].reshape(len(pixels), -1)
        drawn_again = as_ours(model.decode(latents).sample)
        shape = (*latents.shape[:1], *latents.shape[2:], latents.shape[1])
        if model.config.lookup_from_codebook:
            looked_up = model.decode(codes.reshape(shape[:3]), force_not_quantize=True, shape=shape).sample
            np.testing.assert_allclose(as_ours(looked_up), drawn_again, atol=1e-4)
    vectors = jax.jit(lambda pixels: encode(params, pixels, config))(pixels)
    np.testing.assert_allclose(vectors, as_ours(latents), atol=1e-4)
    ours = codes_of(vectors, params.codebook, config.quantizer)
    np.testing.assert_array_equal(np.asarray(ours).reshape(codes.shape), codes.numpy())
    again = jax.jit(lambda codes: decode(params, vectors_of(codes, params.codebook, config.quantizer), config))(ours)
    np.testing.assert_allclose(black + (np.asarray(again) + 1) / 2 * (white - black), drawn_again, atol=1e-4)
    assert len(np.unique(codes)) > 4
    assert np.abs(drawn_again).max() > 0.1


def make_vqmodel(diffusers, torch, **changes):
    torch.manual_seed(0)
    levels = len(changes["block_out_channels"])
    model = diffusers.VQModel(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        mid_block_add_attention=False,
        **changes,
    ).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # no norm's scale is 1, no bias 0
    return model


@pytest.mark.parametrize(
    "shape",
    [
        {"block_out_channels": [32, 64], "latent_channels": 8, "num_vq_embeddings": 64, "vq_embed_dim": 4},
        {"block_out_channels": [16, 24, 40], "layers_per_block": 2, "norm_num_groups": 8, "sample_size": 24},
        {"block_out_channels": [8], "latent_channels": 5, "norm_num_groups": 4, "lookup_from_codebook": True},
    ],
    ids=["two levels", "three levels", "one level"],
)
def test_a_vqmodel_of_theirs(shape, diffusers, torch, tmp_path):
    model = make_vqmodel(diffusers, torch, **shape)
    model.save_pretrained(tmp_path)
    config, params = read_diffusers(tmp_path)
    assert config.widths() == tuple(shape["block_out_channels"])
    assert (config.resolution, config.pixel_range) == (shape.get("sample_size", 32), (0, 1))
    assert_the_same(model, config, params, torch)
    assert read_diffusers(tmp_path, resolution=48)[0].resolution == 48


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_width_of_numbers(dtype, diffusers, torch, tmp_path):
    model = make_vqmodel(diffusers, torch, block_out_channels=[8], norm_num_groups=4).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    params = read_diffusers(tmp_path)[1]
    assert params.codebook.dtype.name == dtype
    np.testing.assert_array_equal(params.codebook.astype(np.float64), model.quantize.embedding.weight.double().detach())


def test_the_golden_vqgan_in_diffusers(diffusers, torch, tmp_path):
    arrays = read_arrays(GOLDEN / "vqgan.pkl")
    config = config_from_shapes(arrays, resolution=64)
    params = from_pickle(arrays, config)
    write_diffusers(tmp_path / "codec", config, params)
    model, info = diffusers.VQModel.from_pretrained(tmp_path / "codec", output_loading_info=True)
    assert not any(info.values()), info
    assert_the_same(model.eval(), config, params, torch)
    golden = np.load(GOLDEN / "vqgan_io.npz")
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(golden["pixel_values"]).permute(0, 3, 1, 2)).latents
    np.testing.assert_allclose(as_ours(latents), golden["z_e"], atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    assert_equal(read_diffusers(tmp_path / "again"), (config, params))


def assert_equal(first, second) -> None:
    assert first[0] == second[0]
    for name, leaf in declared.named_leaves(first[1]).items():
        np.testing.assert_array_equal(leaf, declared.named_leaves(second[1])[name], strict=True, err_msg=name)


@pytest.mark.parametrize("resolution", [16, 32])
def test_there_and_back(resolution, tmp_path):
    config = VQGANConfig(
        resolution, 4, (1, 1, 2, 2, 3), 1, z_channels=4, quantizer=Codebook(8, 4), norm_groups=2, pixel_range=(0, 255)
    )
    params = drawn(config)
    (tmp_path / "codec").mkdir()
    assert write_diffusers(tmp_path / "codec", config, params) == tmp_path / "codec"
    assert_equal(read_diffusers(tmp_path / "codec"), (config, params))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["codec", CONFIG, TENSORS]


def test_amuseds_config_leaves_its_resolution_to_the_pipeline(tmp_path):
    config = VQGANConfig(256, 4, (1, 1, 2, 2, 3), 1, z_channels=4, quantizer=Codebook(8, 4), norm_groups=2)
    write_diffusers(tmp_path / "codec", config, drawn(config))
    values = json.loads((tmp_path / "codec" / CONFIG).read_text())
    del values["_pixel_range"]
    (tmp_path / "codec" / CONFIG).write_text(json.dumps(values | {"sample_size": 32, "vq_embed_dim": None}))
    read = read_diffusers(tmp_path / "codec")[0]
    assert (read.resolution, read.pixel_range, read.quantizer.width) == (256, (0, 1), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "its _class_name is 'AutoencoderKL', not 'VQModel'"),
        ({"mid_block_add_attention": True}, "its mid_block_add_attention is True, and only False"),
        ({"mid_block_add_attention": None}, "its mid_block_add_attention is True, and only False"),
        ({"act_fn": "gelu"}, "its act_fn is 'gelu'"),
        ({"norm_type": "spatial"}, "its norm_type is 'spatial'"),
        ({"in_channels": 1}, "its in_channels is 1"),
        ({"out_channels": [3]}, r"its out_channels is \[3\]"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "its down_block_types is .*'AttnDown"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "its up_block_types is .*one for each level"),
        ({"up_block_types": 7}, "its up_block_types is 7"),
        ({"block_out_channels": [4, 7]}, r"its block_out_channels \(4, 7\) must be multiples of norm_num_groups, 2"),
        ({"block_out_channels": []}, r"its block_out_channels \(\) must be"),
        ({"block_out_channels": 4}, "block_out_channels=4, which is not a list of int"),
        ({"block_out_channels": [4] * 20000}, "its down_block_types is"),
        ({"layers_per_block": 10**12}, "its layers_per_block asks for 32000000000000 tensors or more, and there"),
        ({"layers_per_block": 0}, "its layers_per_block is 0: it must be positive"),
        ({"layers_per_block": 2}, r"up_blocks.0.resnets.2.conv1.bias is missing"),
        ({"norm_num_groups": 0}, "its norm_num_groups is 0"),
        ({"latent_channels": 10**300}, "has shape"),
        ({"num_vq_embeddings": 17}, r"quantize.embedding.weight has shape \(16, 5\) and should have \(17, 5\)"),
        ({"vq_embed_dim": "5"}, "vq_embed_dim='5', which is not int"),
        ({"sample_size": 17}, "resolution 17 is not a multiple of 2"),
        ({"_pixel_range": [1, 0]}, r"pixel_range \(1, 0\): give what black is"),
        ({"_pixel_range": [0, 1, 2]}, r"pixel_range \(0, 1, 2\): give what black is"),
        ({"dropout": 0.5}, "unknown field 'dropout'"),
    ],
)
def test_what_is_not_this_architecture_is_refused(change, message, written):
    values = json.loads((written / CONFIG).read_text()) | change
    (written / CONFIG).write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    with pytest.raises(UserError, match=message) as caught:
        read_diffusers(written)
    assert str(written) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"sample_size": ' + "9" * 5000 + "}", "\xff"])
def test_a_config_that_is_no_config(content, written):
    (written / CONFIG).write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        read_diffusers(written)


def rewrite(file: Path, change) -> None:
    """Change the header of a safetensors file and nothing else."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["quant_conv.bias"].update(data_offsets=[0, 20]), "cannot read the tensors"),
        (lambda header: header["quant_conv.bias"].update(data_offsets=[0, 2**60]), "cannot read the tensors"),
        (lambda header: header["quant_conv.bias"].update(shape=[6]), "cannot read the tensors"),
        (lambda header: header["quant_conv.bias"].update(shape=[2**62, 2**62]), "cannot read the tensors"),
        (lambda header: header["quant_conv.bias"].update(dtype="I32"), "quant_conv.bias is of I32: known are F16"),
        (lambda header: header["quant_conv.bias"].update(dtype="OBJECT"), "cannot read the tensors"),
        (lambda header: header["quantize.embedding.weight"].update(shape=[5, 16]), r"has shape \(5, 16\)"),
        (lambda header: header.update({"spare.bias": header.pop("quant_conv.bias")}), "quant_conv.bias is missing"),
        (lambda header: header.pop("quant_conv.bias"), "cannot read the tensors"),
    ],
)
def test_a_hostile_file_is_refused(change, message, written):
    rewrite(written / TENSORS, change)
    with pytest.raises(UserError, match=message) as caught:
        read_diffusers(written)
    assert str(written / TENSORS) in str(caught.value)


def test_broken_and_missing_files_are_refused(written):
    content = (written / TENSORS).read_bytes()
    for broken in (content[:-1], content[:100], b"", b"\xff" * 8 + content[8:]):
        (written / TENSORS).write_bytes(broken)
        with pytest.raises(UserError, match="cannot read the tensors"):
            read_diffusers(written)
    (written / TENSORS).write_bytes(content)
    (written / TENSORS).rename(written / "model.safetensors")
    assert read_diffusers(written)[0] == SMALL
    (written / CONFIG).unlink()
    with pytest.raises(UserError, match=r"is no codec of diffusers: it has no config\.json"):
        read_diffusers(written)
    (written / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no diffusion_pytorch_model\.safetensors"):
        read_diffusers(written)


def test_what_is_assumed_of_the_pixels_is_said(written):
    assert assumptions(written) == []
    values = json.loads((written / CONFIG).read_text())
    del values["_pixel_range"]
    (written / CONFIG).write_text(json.dumps(values))
    (note,) = assumptions(written)
    assert note.startswith("pixels are taken to be in [0, 1], as aMUSEd's are: ")
    assert '"_pixel_range": [-1, 1]' in note


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PatchCodecConfig(), "separate squares"),
        (VQGANConfig(quantizer=Levels((8, 8))), "fixed levels"),
        (VQGANConfig(norm_eps=1e-5), "norm_eps is 1e-05"),
    ],
)
def test_what_diffusers_does_not_have_is_not_written(config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_diffusers(tmp_path / "codec", config, None)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over_and_nothing_half(tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "taken" / "mine"):
        with pytest.raises(UserError, match="already exists and is not an empty directory"):
            write_diffusers(target, SMALL, drawn(SMALL))
    with pytest.raises(UserError, match="cannot write the codec to"):
        write_diffusers(tmp_path / "taken" / "mine" / "below", SMALL, drawn(SMALL))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lwm.weights.diffusers_codec.write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_diffusers(tmp_path / "new", SMALL, drawn(SMALL))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "taken"]
