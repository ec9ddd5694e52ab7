"""The programs that run on the devices: read a chunk of prompt, generate a block of tokens.

Each is compiled once for a shape. Keys and values are handed on from call to call and never copied.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from lwm.core.mesh import constrain
from lwm.infer.grammar import Grammar, Progress, allowed, begin, follow
from lwm.infer.sampling import Sampling, sample
from lwm.model import transformer
from lwm.model.cache import KVCache
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer

#: tokens generated per call to the device, and so between two calls of `on_tokens`
DECODE_BLOCK = 16

Entries = tuple[Float[Array, "L B K S h"], Float[Array, "L B K S h"]]
Marks = tuple[Int[Array, "B S"], Int[Array, "B S"], Int[Array, ""]]


@dataclass(frozen=True)
class Rules:
    """How tokens are drawn, in text and in frames."""

    grammar: Grammar
    text: Sampling
    frames: Sampling
    #: rows come in pairs, wanted and unwanted, and frames are drawn from what tells the two apart
    guided: bool

    @property
    def rows_a_draw(self) -> int:
        """Rows that get the same tokens."""
        return 2 if self.guided else 1

    def draw(
        self,
        logits: Float[Array, "B V"],
        progress: Progress,
        keys: Key[Array, "B"],
        guidance: Float[Array, "frames"],
        num_frames: Int[Array, ""],
    ) -> Int[Array, "B"]:
        """The next token of each row. `guidance` is that of the first frame of `num_frames`, the second, ..."""
        if not self.grammar.vocab.vision_size:
            return sample(logits, keys, self.text).astype(jnp.int32)
        if self.guided:  # both rows of a pair are where the wanted one is
            progress = jax.tree.map(lambda leaf: jnp.repeat(leaf[::2], 2, axis=0), progress)
        inside = progress.inside
        if self.guided:
            wanted, unwanted = logits.reshape(-1, 2, logits.shape[1]).swapaxes(0, 1)
            frame = jnp.clip(num_frames - 1 - progress.frames_left[::2], 0, len(guidance) - 1)
            told_apart = unwanted + guidance[frame][:, None] * (wanted - unwanted)
            logits = jnp.repeat(jnp.where(inside[::2, None], told_apart, wanted), 2, axis=0)
        logits = jnp.where(allowed(progress, self.grammar), logits, -jnp.inf)
        token = jnp.where(inside, sample(logits, keys, self.frames), sample(logits, keys, self.text))
        return token.astype(jnp.int32)


def split(cache: KVCache) -> tuple[Entries, Marks]:
    """What is handed on from state to state, and what each state keeps."""
    return (cache.keys, cache.values), (cache.segment_ids, cache.positions, cache.used)


@partial(jax.jit, static_argnums=(0, 1))
def nothing_read(batch_size: int, vocab_size: int) -> tuple[Int[Array, "B"], Float[Array, "B V"], Progress]:
    """Lengths, scores and progress of rows that have read nothing."""
    lengths, logits = jnp.zeros(batch_size, jnp.int32), jnp.zeros((batch_size, vocab_size), jnp.float32)
    return constrain(lengths, "batch"), constrain(logits, "batch", None), begin(batch_size)


@partial(jax.jit, static_argnames=("grammar", "config", "compute"), donate_argnames=("entries",))
def read_chunk(
    params: Transformer,
    entries: Entries,
    marks: Marks,
    lengths: Int[Array, "B"],
    logits: Float[Array, "B V"],
    progress: Progress,
    tokens: Int[Array, "B T"],
    counts: Int[Array, "B"],
    grammar: Grammar,
    config: ModelConfig,
    compute: Compute,
) -> tuple[KVCache, Int[Array, "B"], Float[Array, "B V"], Progress]:
    """Read the first `counts[b]` tokens of each row b; the rest is padding."""
    place = jnp.arange(tokens.shape[1])
    segment_ids = (place < counts[:, None]).astype(jnp.int32)
    cache = KVCache(*entries, *marks)
    hidden, cache = transformer.extend(params, tokens, segment_ids, lengths[:, None] + place, cache, config, compute)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    scores = _scores(params, last, config, compute)
    progress = follow(progress, tokens, counts, grammar)
    return cache, lengths + counts, jnp.where(counts[:, None] > 0, scores, logits), progress


@partial(jax.jit, static_argnames=("config", "compute", "rules"), donate_argnames=("entries",))
def decode_block(
    params: Transformer,
    entries: Entries,
    marks: Marks,
    lengths: Int[Array, "B"],
    logits: Float[Array, "B V"],
    progress: Progress,
    done: Bool[Array, "B"],
    limit: Int[Array, ""],
    stop_ids: Int[Array, "n"],
    seed: Integer[Array, ""],
    first: Int[Array, ""],
    guidance: Float[Array, "frames"],
    num_frames: Int[Array, ""],
    config: ModelConfig,
    compute: Compute,
    rules: "Rules",
) -> tuple[KVCache, Int[Array, "B"], Float[Array, "B V"], Progress, Int[Array, "B block"], Bool[Array, "B"]]:
    """Generate up to `limit` tokens a row, -1 after a row's end. `first`: how many came before this block.

    The token drawn after the last one is left to the next block, which draws it again from the same scores and key.
    """
    draws = jnp.arange(len(lengths)) // rules.rows_a_draw
    row_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(draws)

    def draw(logits: Array, progress: Progress, index: Array, done: Array) -> tuple[Array, Array]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, first + index)
        token = rules.draw(logits, progress, keys, guidance, num_frames)
        return token, done | (token[:, None] == stop_ids).any(axis=1)

    def wanted(carry: tuple) -> Array:
        index, *_, done, _ = carry
        return (index < limit) & ~done.all()

    def step(carry: tuple) -> tuple:
        index, cache, lengths, logits, progress, token, done, block = carry
        block = jax.lax.dynamic_update_slice(block, jnp.where(done, -1, token)[:, None], (jnp.int32(0), index))
        alive = (~done).astype(jnp.int32)
        hidden, cache = transformer.extend(
            params, token[:, None], alive[:, None], lengths[:, None], cache, config, compute
        )
        logits = jnp.where(done[:, None], logits, _scores(params, hidden[:, 0], config, compute))
        lengths, progress = lengths + alive, follow(progress, token[:, None], alive, rules.grammar)
        token, done = draw(logits, progress, index + 1, done)
        return index + 1, cache, lengths, logits, progress, token, done, block

    token, done = draw(logits, progress, jnp.int32(0), done)
    block = jnp.full((len(lengths), DECODE_BLOCK), -1, jnp.int32)
    start = (jnp.int32(0), KVCache(*entries, *marks), lengths, logits, progress, token, done, block)
    _, cache, lengths, logits, progress, _, done, block = jax.lax.while_loop(wanted, step, start)
    return cache, lengths, logits, progress, block, done


def _scores(params: Transformer, hidden: Array, config: ModelConfig, compute: Compute) -> Float[Array, "B V"]:
    head = transformer.head_weights(params, config, compute)
    return constrain(transformer.logits(hidden, head), "batch", None)


@jax.jit
def forget(
    segment_ids: Int[Array, "B S"], positions: Int[Array, "B S"], lengths: Int[Array, "B"], kept: Int[Array, "B"]
) -> tuple[Int[Array, "B S"], Int[Array, "B"]]:
    """Take the tokens after the kept ones out of sight."""
    return jnp.where(positions < kept[:, None], segment_ids, 0), jnp.minimum(lengths, kept)
