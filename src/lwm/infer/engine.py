"""The loop that reads prompts and generates ids. It knows nothing of text: ids in, ids out.

Prompts are read in chunks of a few fixed sizes, so that a handful of compiled programs serves every length. Tokens
are generated many per call, on the device. Keys and values are handed on from state to state and never copied.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lwm.core.errors import UserError
from lwm.core.mesh import axis_size
from lwm.data.vision import OPENING
from lwm.infer.grammar import Grammar, Progress, begin, expect
from lwm.infer.programs import DECODE_BLOCK, Rules, decode_block, forget, nothing_read, read_chunk, split
from lwm.infer.sampling import FrameSampling, Sampling
from lwm.model import cache as caches
from lwm.model.cache import KVCache
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer
from lwm.weights.load import LoadedModel

#: the smallest chunk a prompt is read in
MIN_CHUNK = 16

Ids = Sequence[int]
OnTokens = Callable[[list[list[int]]], None]


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
    #: where each row stands between text and frames
    progress: Progress
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
    #: most tokens a row reads at a time; bounds the memory of reading, does not change results, but for a model of
    #: dynamic rotary scaling beyond its trained length (`model.rope.rotary_angles`)
    prefill_chunk: int = 2048
    #: the ids that open a frame in the model's own text; none: frames come only where a prompt has opened one
    opening: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prefill_chunk < 1:
            raise UserError(f"prefill_chunk {self.prefill_chunk} must be positive")

    @classmethod
    def of(cls, model: LoadedModel, dtype: Literal["float32", "bfloat16"] = "float32") -> "Engine":
        """The engine of a loaded model. If it draws, it does so where its own text opens a frame, too."""
        draws = model.config.vocab.vision_size > 0
        opening = tuple(model.tokenizer.encode(OPENING)) if draws and model.tokenizer is not None else ()
        return cls(model.params, model.config, Compute(dtype=dtype), model.mesh, opening=opening)

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
        """A state that has read nothing, with room for at least `capacity` slots a row.

        Raises:
            UserError: there is not so much memory.
        """
        with jax.set_mesh(self.mesh):
            ways = axis_size("batch")
            batch_size = -(-num_rows // ways) * ways
            cache = self._new_cache(batch_size, _round_up(capacity))
            lengths, logits, progress = nothing_read(batch_size, self.config.vocab.size)
        return State(cache, lengths, logits, progress, num_rows)

    def _new_cache(self, batch_size: int, capacity: int) -> KVCache:
        try:
            return caches.allocate(self.config, batch_size, capacity, self.compute.jax_dtype)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"there is no memory for the keys and values of {batch_size} x {capacity:,} tokens: give fewer or "
                "shorter prompts, and ask for less"
            ) from None

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
            cache, lengths, logits, progress = state.cache, state.lengths, state.logits, state.progress
            for stop, size in zip(accumulate(chunks), chunks, strict=True):
                tokens = padded[:, stop - size : stop]
                in_chunk = np.clip(counts - (stop - size), 0, size)
                cache, lengths, logits, progress = read_chunk(
                    self.params, *split(cache), lengths, logits, progress, tokens, in_chunk, self.grammar,
                    self.config, self.compute,
                )  # fmt: skip
            logits.block_until_ready()
        seconds = time.perf_counter() - began
        timings = replace(
            state.timings,
            prefill_tokens=state.timings.prefill_tokens + int(counts.sum()),
            prefill_seconds=state.timings.prefill_seconds + seconds,
        )
        return State(cache, lengths, logits, progress, state.num_rows, timings)

    def decode(
        self,
        state: State,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008
        stop_ids: Ids = (),
        seed: int = 0,
        on_tokens: OnTokens | None = None,
        frames: FrameSampling = FrameSampling(),  # noqa: B008
    ) -> tuple[list[list[int]], State]:
        """Generate up to `max_new_tokens` in each row; return them and the state that has read them too.

        With `frames.guidance` rows come in pairs: what is wanted, then the same without it. Both get the same tokens.

        Raises:
            ValueError: the cache is too small, or rows that should come in pairs are odd in number.
        """
        if max_new_tokens > state.free:
            raise ValueError(f"{max_new_tokens} more tokens do not fit: the cache has {state.free} slots left")
        generated: list[list[int]] = [[] for _ in range(state.num_rows)]
        stop, done = np.asarray(stop_ids, np.int32), np.arange(len(state.lengths)) >= state.num_rows
        timings, began = state.timings, time.perf_counter()
        if frames.guidance and (state.num_rows % 2 or len(state.lengths) % 2):
            raise ValueError(f"{state.num_rows} rows on {len(state.lengths)} places of the mesh do not come in pairs")
        progress = expect(state.progress, frames.total, self.grammar)
        rules = Rules(self.grammar, sampling, frames.sampling or sampling, bool(frames.guidance))
        told = np.asarray(frames.guidance or (1.0,), np.float32), np.int32(frames.total)
        for first in range(0, max_new_tokens, DECODE_BLOCK):
            limit = min(DECODE_BLOCK, max_new_tokens - first)
            with jax.set_mesh(self.mesh):
                cache, lengths, logits, progress, block, ended = decode_block(
                    self.params, *split(state.cache), state.lengths, state.logits, progress, done, np.int32(limit),
                    stop, np.uint32(seed % 2**32), np.int32(first), *told, self.config, self.compute, rules,
                )  # fmt: skip
            new = [row[row >= 0].tolist() for row in np.asarray(block)[: state.num_rows]]
            generated = [row + more for row, more in zip(generated, new, strict=True)]
            timings = replace(
                timings,
                decode_tokens=timings.decode_tokens + sum(map(len, new)),
                decode_seconds=state.timings.decode_seconds + time.perf_counter() - began,
            )
            state = State(cache, lengths, logits, progress, state.num_rows, timings)
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
        """Keep each row's first `lengths` tokens only, which end outside any frame.

        The slots of the others stay taken; `logits` no longer hold.
        """
        kept = np.zeros(state.lengths.shape, np.int32)
        kept[: len(lengths)] = lengths
        with jax.set_mesh(self.mesh):
            segment_ids, kept_lengths = forget(state.cache.segment_ids, state.cache.positions, state.lengths, kept)
        cache = replace(state.cache, segment_ids=segment_ids)
        return replace(state, cache=cache, lengths=kept_lengths, progress=begin(len(kept)))

    @property
    def grammar(self) -> Grammar:
        """The rules of the model's ids."""
        return Grammar(self.config.vocab, self.opening)

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
