"""The loop that reads prompts and generates ids. It knows nothing of text: ids in, ids out.

Prompts are read in chunks of a few fixed sizes, so that a handful of compiled programs serves every length. Tokens
are generated many per call, on the device. Keys and values are handed on from state to state and never copied.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Integer

from lwm.core.errors import UserError
from lwm.core.mesh import axis_size, constrain
from lwm.infer.sampling import Sampling, sample
from lwm.model import cache as caches
from lwm.model import transformer
from lwm.model.cache import KVCache
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer

#: tokens generated per call to the device, and so between two calls of `on_tokens`
DECODE_BLOCK = 16
#: the smallest chunk a prompt is read in
MIN_CHUNK = 16

Ids = Sequence[int]
OnTokens = Callable[[list[list[int]]], None]
Entries = tuple[Float[Array, "L B K S h"], Float[Array, "L B K S h"]]
Marks = tuple[Int[Array, "B S"], Int[Array, "B S"], Int[Array, ""]]


@dataclass(frozen=True)
class Timings:
    """What was read and generated so far, over all rows, and how long that took; compile time included."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Tokens read a second."""
        return self.prefill_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_rate(self) -> float:
        """Tokens generated a second."""
        return self.decode_tokens / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class State:
    """Rows that have been read so far, and the scores of the token that follows each.

    Reading or generating more spends a state: the buffers of keys and values pass to the new one. Its bookkeeping
    stays, so `Engine.rewind` can go back to it. Rows beyond `num_rows` only fill the mesh's batch axes.
    """

    cache: KVCache
    #: tokens each row has read
    lengths: Int[Array, "B"]
    #: of each row's next token, fp32
    logits: Float[Array, "B V"]
    num_rows: int
    timings: Timings = field(default_factory=Timings)

    @property
    def free(self) -> int:
        """Slots a row still has."""
        return self.cache.capacity - int(self.cache.used)


@dataclass(frozen=True)
class Engine:
    """A model ready to read and generate under its mesh.

    It reads prompts of any length that memory holds: whether a model is any good beyond its `max_context` is for
    its callers to ask.
    """

    params: Transformer
    config: ModelConfig
    compute: Compute
    mesh: Mesh
    #: most tokens a row reads at a time; bounds the memory of reading, does not change results
    prefill_chunk: int = 2048

    def __post_init__(self) -> None:
        if self.prefill_chunk < 1:
            raise UserError(f"prefill_chunk {self.prefill_chunk} must be positive")

    def generate(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008
        stop_ids: Ids = (),
        seed: int = 0,
        on_tokens: OnTokens | None = None,
    ) -> list[list[int]]:
        """Continue each prompt by up to `max_new_tokens`, until one of `stop_ids`, which is left out.

        A row's tokens do not depend on the other rows. `on_tokens` receives each row's new tokens as they come.

        Raises:
            UserError: no prompt, an empty prompt, or an id that the model does not have.
        """
        capacity = self.slots(max(map(len, prompts), default=0)) + max_new_tokens
        state = self.start(prompts, capacity)
        return self.decode(state, max_new_tokens, sampling, stop_ids, seed, on_tokens)[0]

    def slots(self, num_tokens: int) -> int:
        """Cache slots a row needs at most to read `num_tokens` at once: they are padded to whole chunks."""
        return sum(self._chunks(num_tokens)) + self._shards

    def start(self, prompts: Sequence[Ids], capacity: int) -> State:
        """Read prompts of any lengths into a new cache of at least `capacity` slots a row.

        Raises:
            UserError: as `generate`.
        """
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise UserError("a prompt is empty: give at least one token to continue")
        self._require_known(prompts)
        return self.extend(self.allocate(len(prompts), capacity), prompts)

    def allocate(self, num_rows: int, capacity: int) -> State:
        """A state that has read nothing, with room for at least `capacity` slots a row."""
        with jax.set_mesh(self.mesh):
            ways = axis_size("batch")
            batch_size = -(-num_rows // ways) * ways
            cache = caches.allocate(self.config, batch_size, _round_up(capacity), self.compute.jax_dtype)
            lengths, logits = _nothing_read(batch_size, self.config.vocab.size)
        return State(cache, lengths, logits, num_rows)

    def extend(self, state: State, ids: Sequence[Ids]) -> State:
        """Read more ids in each row (none in some, if you like).

        Raises:
            UserError: an id that the model does not have.
            ValueError: the cache is too small.
        """
        self._require_known(ids)
        counts = np.zeros(state.lengths.shape, np.int32)
        counts[: len(ids)] = [len(row) for row in ids]
        chunks = self._chunks(int(counts.max(initial=0)))
        if sum(chunks) + self._shards > state.free:
            raise ValueError(f"{counts.max()} more tokens need {sum(chunks)} slots and the cache has {state.free} left")
        padded = np.zeros((len(counts), sum(chunks)), np.int32)
        for row, new in zip(padded, ids, strict=False):
            row[: len(new)] = new
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            cache, lengths, logits = state.cache, state.lengths, state.logits
            for stop, size in zip(accumulate(chunks), chunks, strict=True):
                tokens = padded[:, stop - size : stop]
                in_chunk = np.clip(counts - (stop - size), 0, size)
                entries, marks = _split(cache)
                cache, lengths, logits = _read_chunk(
                    self.params, entries, marks, lengths, logits, tokens, in_chunk, self.config, self.compute
                )
            logits.block_until_ready()
        seconds = time.perf_counter() - began
        timings = replace(
            state.timings,
            prefill_tokens=state.timings.prefill_tokens + int(counts.sum()),
            prefill_seconds=state.timings.prefill_seconds + seconds,
        )
        return State(cache, lengths, logits, state.num_rows, timings)

    def decode(
        self,
        state: State,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008
        stop_ids: Ids = (),
        seed: int = 0,
        on_tokens: OnTokens | None = None,
    ) -> tuple[list[list[int]], State]:
        """Generate up to `max_new_tokens` in each row; return them and the state that has read them too.

        Raises:
            ValueError: the cache is too small.
        """
        if max_new_tokens > state.free:
            raise ValueError(f"{max_new_tokens} more tokens do not fit: the cache has {state.free} slots left")
        generated: list[list[int]] = [[] for _ in range(state.num_rows)]
        stop, done = np.asarray(stop_ids, np.int32), np.arange(len(state.lengths)) >= state.num_rows
        timings, began = state.timings, time.perf_counter()
        for first in range(0, max_new_tokens, DECODE_BLOCK):
            limit = min(DECODE_BLOCK, max_new_tokens - first)
            entries, marks = _split(state.cache)
            with jax.set_mesh(self.mesh):
                cache, lengths, logits, block, ended = _decode_block(
                    self.params, entries, marks, state.lengths, state.logits, done, np.int32(limit), stop,
                    np.uint32(seed % 2**32), np.int32(first), self.config, self.compute, sampling,
                )  # fmt: skip
            new = [row[row >= 0].tolist() for row in np.asarray(block)[: state.num_rows]]
            generated = [row + more for row, more in zip(generated, new, strict=True)]
            timings = replace(
                timings,
                decode_tokens=timings.decode_tokens + sum(map(len, new)),
                decode_seconds=state.timings.decode_seconds + time.perf_counter() - began,
            )
            state = State(cache, lengths, logits, state.num_rows, timings)
            done = np.asarray(ended)
            if on_tokens is not None:
                on_tokens(new)
            if done.all():
                break
        return generated, state

    def rewind(self, state: State, earlier: State) -> State:
        """Go back to an `earlier` state that `state` came from, at no cost. Spends `state`.

        Slots are only ever added, so what the earlier state had read still lies where it was.
        """
        return replace(earlier, cache=earlier.cache.with_entries(state.cache.keys, state.cache.values))

    def forget(self, state: State, lengths: Sequence[int]) -> State:
        """Keep each row's first `lengths` tokens only. The slots of the others stay taken; `logits` no longer hold."""
        kept = np.zeros(state.lengths.shape, np.int32)
        kept[: len(lengths)] = lengths
        with jax.set_mesh(self.mesh):
            segment_ids, kept_lengths = _forget(state.cache.segment_ids, state.cache.positions, state.lengths, kept)
        return replace(state, cache=replace(state.cache, segment_ids=segment_ids), lengths=kept_lengths)

    @property
    def _shards(self) -> int:
        with jax.set_mesh(self.mesh):
            return axis_size("tokens")

    def _chunks(self, num_tokens: int) -> list[int]:
        """Sizes of the chunks in which `num_tokens` are read: whole ones, then halves, a quarter padding at most.

        Every size is a power of two times the smallest one, which the sp axis divides.
        """
        smallest = -(-MIN_CHUNK // self._shards) * self._shards
        size = smallest << max(0, (self.prefill_chunk // smallest).bit_length() - 1)
        chunks = [size] * (num_tokens // size)
        rest = num_tokens % size
        while rest > 0:
            while size // 2 >= max(rest, smallest):
                size //= 2
            if rest <= size * 3 // 4 and size > smallest:
                size //= 2
            chunks.append(size)
            rest -= size
        return chunks

    def _require_known(self, ids: Sequence[Ids]) -> None:
        for row in ids:
            if len(row) and not 0 <= min(row) <= max(row) < self.config.vocab.size:
                known = self.config.vocab.size
                wrong = next(token for token in row if not 0 <= token < known)
                raise UserError(f"token id {wrong} is outside the model's {known} ids: is this its tokenizer?")


def _round_up(capacity: int) -> int:
    """To an eighth of a power of two: few distinct capacities, so few programs to compile, for an eighth of waste."""
    step = max(MIN_CHUNK, 1 << max(0, capacity.bit_length() - 4))
    return -(-capacity // step) * step


def _split(cache: KVCache) -> tuple[Entries, Marks]:
    """What is handed on from state to state, and what each state keeps."""
    return (cache.keys, cache.values), (cache.segment_ids, cache.positions, cache.used)


@partial(jax.jit, static_argnums=(0, 1))
def _nothing_read(batch_size: int, vocab_size: int) -> tuple[Int[Array, "B"], Float[Array, "B V"]]:
    lengths, logits = jnp.zeros(batch_size, jnp.int32), jnp.zeros((batch_size, vocab_size), jnp.float32)
    return constrain(lengths, "batch"), constrain(logits, "batch", None)


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames=("entries",))
def _read_chunk(
    params: Transformer,
    entries: Entries,
    marks: Marks,
    lengths: Int[Array, "B"],
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B T"],
    counts: Int[Array, "B"],
    config: ModelConfig,
    compute: Compute,
) -> tuple[KVCache, Int[Array, "B"], Float[Array, "B V"]]:
    """Read the first `counts[b]` tokens of each row b; the rest is padding."""
    place = jnp.arange(tokens.shape[1])
    segment_ids = (place < counts[:, None]).astype(jnp.int32)
    cache = KVCache(*entries, *marks)
    hidden, cache = transformer.extend(params, tokens, segment_ids, lengths[:, None] + place, cache, config, compute)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    scores = _scores(params, last, config, compute)
    return cache, lengths + counts, jnp.where(counts[:, None] > 0, scores, logits)


@partial(jax.jit, static_argnames=("config", "compute", "sampling"), donate_argnames=("entries",))
def _decode_block(
    params: Transformer,
    entries: Entries,
    marks: Marks,
    lengths: Int[Array, "B"],
    logits: Float[Array, "B V"],
    done: Bool[Array, "B"],
    limit: Int[Array, ""],
    stop_ids: Int[Array, "n"],
    seed: Integer[Array, ""],
    first: Int[Array, ""],
    config: ModelConfig,
    compute: Compute,
    sampling: Sampling,
) -> tuple[KVCache, Int[Array, "B"], Float[Array, "B V"], Int[Array, "B block"], Bool[Array, "B"]]:
    """Generate up to `limit` tokens a row, -1 after a row's end. `first`: how many came before this block.

    The token drawn after the last one is left to the next block, which draws it again from the same scores and key.
    """
    row_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(lengths)))

    def draw(logits: Array, index: Array, done: Array) -> tuple[Array, Array]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, first + index)
        token = sample(logits, keys, sampling).astype(jnp.int32)
        return token, done | (token[:, None] == stop_ids).any(axis=1)

    def wanted(carry: tuple) -> Array:
        index, *_, done, _ = carry
        return (index < limit) & ~done.all()

    def step(carry: tuple) -> tuple:
        index, cache, lengths, logits, token, done, block = carry
        block = jax.lax.dynamic_update_slice(block, jnp.where(done, -1, token)[:, None], (jnp.int32(0), index))
        alive = (~done).astype(jnp.int32)
        hidden, cache = transformer.extend(
            params, token[:, None], alive[:, None], lengths[:, None], cache, config, compute
        )
        logits = jnp.where(done[:, None], logits, _scores(params, hidden[:, 0], config, compute))
        lengths = lengths + alive
        token, done = draw(logits, index + 1, done)
        return index + 1, cache, lengths, logits, token, done, block

    token, done = draw(logits, jnp.int32(0), done)
    block = jnp.full((len(lengths), DECODE_BLOCK), -1, jnp.int32)
    start = (jnp.int32(0), KVCache(*entries, *marks), lengths, logits, token, done, block)
    _, cache, lengths, logits, _, done, block = jax.lax.while_loop(wanted, step, start)
    return cache, lengths, logits, block, done


def _scores(params: Transformer, hidden: Array, config: ModelConfig, compute: Compute) -> Float[Array, "B V"]:
    head = transformer.head_weights(params, config, compute)
    return constrain(transformer.logits(hidden, head), "batch", None)


@jax.jit
def _forget(
    segment_ids: Int[Array, "B S"], positions: Int[Array, "B S"], lengths: Int[Array, "B"], kept: Int[Array, "B"]
) -> tuple[Int[Array, "B S"], Int[Array, "B"]]:
    return jnp.where(positions < kept[:, None], segment_ids, 0), jnp.minimum(lengths, kept)
