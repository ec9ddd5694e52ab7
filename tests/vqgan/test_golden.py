"""The original LWM's codes, reconstruction and gradient, to rounding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN, decode, encode
from lwm.vqgan.quantize import Codebook, codes_of, quantize, vectors_of
from lwm.weights.vqgan_pickle import from_pickle, read_arrays

GOLDEN = Path(__file__).parent.parent / "golden"
QUANTIZER = Codebook(num_codes=256, width=16)
CONFIG = VQGANConfig(
    resolution=64,
    hidden_channels=32,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    z_channels=16,
    quantizer=QUANTIZER,
)
#: of a gradient below this nothing is left but rounding: biases in front of a norm have none
NO_GRADIENT = 1e-7


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "vqgan_io.npz"))


@pytest.fixture(scope="module")
def params() -> VQGAN:
    return jax.tree.map(jnp.asarray, from_pickle(read_arrays(GOLDEN / "vqgan.pkl"), CONFIG))


def test_pixels_to_codes(params, golden):
    vectors = jax.jit(lambda pixels: encode(params, pixels, CONFIG))(golden["pixel_values"])
    np.testing.assert_allclose(vectors, golden["z_e"], atol=1e-4)
    clear = golden["code_margin"] > 1e-4
    assert clear.mean() > 0.99
    codes = codes_of(vectors, params.codebook, QUANTIZER)
    np.testing.assert_array_equal(codes[clear], golden["codes"][clear])


def test_codes_to_pixels(params, golden):
    pixels = jax.jit(lambda codes: decode(params, vectors_of(codes, params.codebook, QUANTIZER), CONFIG))(
        golden["codes"]
    )
    np.testing.assert_allclose(jnp.clip(pixels, -1, 1), golden["reconstruction"], atol=1e-4)


def test_gradient_of_the_reconstruction_error(params, golden):
    def loss(params: VQGAN) -> jax.Array:
        vectors = encode(params, wanted, CONFIG)
        pixels = decode(params, quantize(vectors, params.codebook, QUANTIZER)[0], CONFIG)
        return jnp.square(jnp.clip(pixels, -1, 1) - wanted).mean()

    wanted = jnp.asarray(golden["pixel_values"])
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    stored = np.load(GOLDEN / "vqgan_gradient.npz")
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-5)
    named = under_original_names(gradient)
    assert named.keys() == set(stored.files) - {"loss"}
    for name, ours in named.items():
        sample = ours.ravel()[:: max(1, ours.size // 256)]
        scale = np.abs(stored[name]).max()
        np.testing.assert_allclose(sample, stored[name], atol=1e-4 * scale + NO_GRADIENT, err_msg=name)


def under_original_names(params: VQGAN) -> dict[str, np.ndarray]:
    """Our tensors under LWM's names: which is which is read off a file whose arrays hold their own number."""
    stored = read_arrays(GOLDEN / "vqgan.pkl")
    numbered = {name: np.full(array.shape, place) for place, (name, array) in enumerate(stored.items())}
    names, places = list(stored), from_pickle(numbered, CONFIG)
    pairs = zip(jax.tree.leaves(places), jax.tree.leaves(params), strict=True)
    return {names[int(place.flat[0])]: np.asarray(leaf) for place, leaf in pairs}
