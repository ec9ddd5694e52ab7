"""How fast pictures are drawn, against a loop in Python that calls the model once for each token.

    python benchmarks/drawing.py --model nano

Both keep keys and values; the loop fetches the scores of each token, picks one of the allowed ids on the host, and
sends it back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.vision import OPENING
from lwm.infer import prompts
from lwm.infer.engine import Engine
from lwm.infer.pictures import DrawTask, draw_codes
from lwm.infer.sampling import Sampling
from lwm.infer.session import require_tokenizer
from lwm.model import cache as caches
from lwm.model.transformer import extend, head_weights, logits
from lwm.weights.store import LoadedModel, load_model

ASKED = prompts.draw_image("a big red circle on grass.")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "nano"
    #: pictures drawn together; the loop draws them one after another
    together: tuple[int, ...] = (1, 8, 32)
    repeats: int = 3


def token_by_token(model: LoadedModel, engine: Engine) -> Callable[[], np.ndarray]:
    """The loop, for one picture: the codes it draws greedily."""
    config, compute, vocab = model.config, engine.compute, model.config.vocab
    tokenizer = require_tokenizer(model)
    ids = prompts.encode(tokenizer, ASKED) + tokenizer.encode(OPENING)

    @jax.jit
    def read(params, tokens, positions, cache):
        hidden, cache = extend(params, tokens, jnp.ones_like(tokens), positions, cache, config, compute)
        return logits(hidden[:, -1], head_weights(params, config, compute)), cache

    def draw() -> np.ndarray:
        cache = caches.allocate(config, 1, len(ids) + vocab.tokens_per_frame, jnp.float32)
        places = np.arange(len(ids), dtype=np.int32)[None]
        scores, cache = read(model.params, np.array([ids], np.int32), places, cache)
        codes: list[int] = []
        while len(codes) < vocab.tokens_per_frame:
            allowed = np.asarray(scores)[0, vocab.text_size : vocab.text_size + vocab.num_codes]
            codes.append(int(allowed.argmax()))
            place = len(ids) + len(codes) - 1
            token = np.array([[vocab.text_size + codes[-1]]], np.int32)
            scores, cache = read(model.params, token, np.array([[place]], np.int32), cache)
        return np.array(codes)

    return draw


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The best of some calls, after one that compiles."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main(options: Options) -> None:
    """Print codes a second, and the ratio to the loop."""
    model = load_model(options.model, make_mesh(MeshShape(), jax.devices()[:1]))
    engine = Engine.of(model)
    loop = token_by_token(model, engine)
    (drawn,) = draw_codes(DrawTask([ASKED], 1, Sampling()), model, engine)
    np.testing.assert_array_equal(drawn[0], loop())
    each = model.config.vocab.tokens_per_frame
    slow = each / seconds(loop, options.repeats)
    print(f"{'a loop in Python, one picture':<36}{slow:>12,.0f} codes/s")
    for count in options.together:
        task = DrawTask([ASKED] * count, 1, Sampling())
        rate = count * each / seconds(lambda task=task: draw_codes(task, model, engine), options.repeats)
        print(f"{f'lwm, {count} together':<36}{rate:>12,.0f} codes/s{rate / slow:>8.1f}x")


if __name__ == "__main__":
    main(tyro.cli(Options))
