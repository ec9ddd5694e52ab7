"""How fast pictures are drawn, against loops in Python that call the model once for each token.

    python benchmarks/drawing.py --model nano [--save]

The loops fetch the scores of each token, pick one of the allowed ids on the host, and send it back. One keeps keys and
values, as we do; the other reads all that is there again for each token. All three draw the same picture.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from saving import HARDWARE
from saving import save as save_table

from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.vision import OPENING
from lwm.infer import prompts
from lwm.infer.engine import Engine
from lwm.infer.pictures import DrawTask, draw_codes
from lwm.infer.sampling import Sampling
from lwm.infer.session import require_tokenizer
from lwm.model import cache as caches
from lwm.model.config import Compute
from lwm.model.transformer import extend, head_weights, hidden_states, logits
from lwm.weights.load import LoadedModel, load_model

ASKED = prompts.draw_image("a big red circle on grass.")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "nano"
    #: pictures drawn together; the loop draws them one after another
    together: tuple[int, ...] = (1, 8, 32)
    repeats: int = 5
    #: write benchmarks/results/drawing_<hardware>_<date>.md
    save: bool = False


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


def without_cache(model: LoadedModel) -> Callable[[], np.ndarray]:
    """The loop that reads everything again, padded to one length so that one program serves: the codes it draws."""
    config, vocab, tokenizer = model.config, model.config.vocab, require_tokenizer(model)
    ids = prompts.encode(tokenizer, ASKED) + tokenizer.encode(OPENING)
    places = np.arange(len(ids) + vocab.tokens_per_frame, dtype=np.int32)[None]

    @jax.jit
    def read(params, tokens, last):
        hidden = hidden_states(params, tokens, jnp.ones_like(tokens), places, config, Compute())
        return logits(hidden[:, last], head_weights(params, config, Compute()))

    def draw() -> np.ndarray:
        tokens = np.zeros_like(places)
        tokens[0, : len(ids)] = ids
        for place in range(len(ids), places.size):
            scores = np.asarray(read(model.params, tokens, np.int32(place - 1)))[0]
            tokens[0, place] = vocab.text_size + scores[vocab.text_size : vocab.text_size + vocab.num_codes].argmax()
        return tokens[0, len(ids) :] - vocab.text_size

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
    """Print codes a second, and the ratios to the loops."""
    model = load_model(options.model, make_mesh(MeshShape(), jax.devices()[:1]))
    engine = Engine.of(model)
    loops = {"no cache": without_cache(model), "a cache": token_by_token(model, engine)}
    (drawn,) = draw_codes(DrawTask([ASKED], 1, Sampling()), model, engine)
    for loop in loops.values():
        np.testing.assert_array_equal(drawn[0], loop())
    each = model.config.vocab.tokens_per_frame
    rates = {f"Python loop, {name}, 1 picture": each / seconds(loop, options.repeats) for name, loop in loops.items()}
    slow, cached = rates.values()
    for count in options.together:
        task = DrawTask([ASKED] * count, 1, Sampling())
        taken = seconds(lambda task=task: draw_codes(task, model, engine), options.repeats)
        rates[f"lwm, {count} together"] = count * each / taken
    lines = [
        f"Codes of pictures drawn a second, model {options.model}, {HARDWARE}, best of {options.repeats}.",
        "",
        "| who | codes/s | to the loop without cache | to the loop with one |",
        "|---|---|---|---|",
        *(f"| {who} | {rate:,.0f} | {rate / slow:.1f} | {rate / cached:.1f} |" for who, rate in rates.items()),
    ]
    print("\n".join(lines))
    if options.save:
        save_table("drawing", lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
