"""Llama models in GGUF, llama.cpp's format: weights of eight, four or other numbers of bits, read as floats.

Its matrices are (out, in), one a layer; ours are (in, out) and stacked over layers. The rows of its queries and keys
are in pairs (2i, 2i + 1) already, as our rotary positions turn them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lwm.core.errors import UserError
from lwm.core.params import require_same_shapes, shapes_by_name
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.weights.gguf_file import GgufFile, StoredTensor
from lwm.weights.gguf_rope import ROPE_FACTORS, read_scaling
from lwm.weights.tensors import STACKED, TensorSpec

_ARCHITECTURE = "llama"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
#: types that are floats as they stand, by their number in ggml's list
_FLOATS: dict[int, np.dtype] = {0: jnp.dtype("float32"), 1: jnp.dtype("float16"), 30: jnp.dtype("bfloat16")}
_FLOAT32 = np.dtype("float32")
#: what makes a model compute something other than a plain Llama, and the values at which it does not
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "use_parallel_residual": (False,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor of ours lies: the file's name (`*`: the layer), and how many of our last axes are its rows.

    None are, where the file has it as we do.
    """

    name: str
    row_axes: int


_PLACES = {
    "embedding": _Place(_EMBEDDING, 0),
    "layers.attention_norm": _Place("blk.*.attn_norm.weight", 0),
    "layers.query": _Place("blk.*.attn_q.weight", 2),
    "layers.key": _Place("blk.*.attn_k.weight", 2),
    "layers.value": _Place("blk.*.attn_v.weight", 2),
    "layers.output": _Place("blk.*.attn_output.weight", 1),
    "layers.ffn_norm": _Place("blk.*.ffn_norm.weight", 0),
    "layers.gate": _Place("blk.*.ffn_gate.weight", 1),
    "layers.up": _Place("blk.*.ffn_up.weight", 1),
    "layers.down": _Place("blk.*.ffn_down.weight", 1),
    "final_norm": _Place("output_norm.weight", 0),
    "head": _Place(_HEAD, 1),
}


class GgufTensors:
    """The tensors of a GGUF file of a plain Llama, and its `config`. Quantized ones come as float32.

    Raises:
        UserError: not a GGUF file of a plain Llama, one that is cut short or corrupt, tensors that are missing,
            unknown or of another shape than the metadata says, or quantized ones without the package `gguf`.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = GgufFile(path)
        self.config = _read_config(self._file)
        self._shapes = shapes_by_name(declare(self.config))
        wanted = {
            stored: _stored_shape(own, shape)
            for own, shape in self._shapes.items()
            for stored in self._stored_names(own)
        }
        stored_shapes = {name: tensor.shape for name, tensor in self._file.tensors.items() if name != ROPE_FACTORS}
        require_same_shapes(str(path), stored_shapes, "the Llama that its metadata describes", wanted)
        numbers = {tensor.kind: name for name, tensor in self._file.tensors.items()}
        self._kinds = {number: _kind(number, name, self._file.path) for number, name in numbers.items()}
        for name, tensor in self._file.tensors.items():
            self._require_whole(name, tensor)
        self.specs: Mapping[str, TensorSpec] = {name: self._spec(name) for name in self._shapes}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor, in our layout; `index` has no steps. Of the file only the rows that it needs are read."""
        shape, dtype = self._shapes[name], self.specs[name].dtype
        bounds = [slice(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        stored = self._stored_names(name)
        if not name.startswith(STACKED):
            return self._one(stored[0], _PLACES[name].row_axes, shape, bounds).astype(dtype, copy=False)
        stacked = np.empty([part.stop - part.start for part in bounds], dtype)
        for place, layer in enumerate(stored[bounds[0]]):
            stacked[place] = self._one(layer, _PLACES[name].row_axes, shape[1:], bounds[1:])
        return stacked

    def _stored_names(self, name: str) -> list[str]:
        pattern = _PLACES[name].name
        layers = range(self.config.num_layers) if name.startswith(STACKED) else [0]
        return [pattern.replace("*", str(layer)) for layer in layers]

    def _spec(self, name: str) -> TensorSpec:
        kinds = {self._kinds[self._file.tensors[stored].kind] for stored in self._stored_names(name)}
        dtypes = {kind.dtype for kind in kinds}
        quantized = " and ".join(sorted(kind.name for kind in kinds if kind.quantized))
        changes = [f"dequantized from {quantized}"] if quantized else []
        changes += ["transposed"] if _PLACES[name].row_axes else []
        dtype = dtypes.pop() if len(dtypes) == 1 else _FLOAT32
        return TensorSpec(self._shapes[name], dtype, _PLACES[name].name, ", ".join(changes))

    def _one(self, stored: str, row_axes: int, shape: tuple[int, ...], bounds: list[slice]) -> np.ndarray:
        """Part of a tensor that the file holds whole: the first of our axes that are its rows says which are read."""
        if not row_axes:
            if len(shape) == 1:
                return self._rows(stored, 0, 1)[0, bounds[0]]
            return self._rows(stored, bounds[0].start, bounds[0].stop)[:, *bounds[1:]]
        axis = len(shape) - row_axes
        width = math.prod(shape[axis + 1 :])
        rows = self._rows(stored, bounds[axis].start * width, bounds[axis].stop * width)
        ours = rows.T.reshape(*shape[:axis], -1, *shape[axis + 1 :])
        return ours[*bounds[:axis], :, *bounds[axis + 1 :]]

    def _rows(self, stored: str, start: int, stop: int) -> np.ndarray:
        """A tensor's rows as floats; a vector is one row."""
        tensor = self._file.tensors[stored]
        kind = self._kinds[tensor.kind]
        row_bytes = tensor.shape[-1] // kind.block_size * kind.block_bytes
        offset = tensor.offset + start * row_bytes
        raw = np.frombuffer(self._file.content, np.uint8, (stop - start) * row_bytes, offset)
        return kind.floats(raw.reshape(stop - start, row_bytes))

    def _require_whole(self, name: str, tensor: StoredTensor) -> None:
        kind, path = self._kinds[tensor.kind], self._file.path
        if tensor.shape[-1] % kind.block_size:
            raise UserError(
                f"{path}: the rows of {name} have {tensor.shape[-1]} numbers, which are no blocks of {kind.block_size} "
                f"as {kind.name} has them"
            )
        end = tensor.offset + math.prod(tensor.shape) // kind.block_size * kind.block_bytes
        if end > len(self._file.content):
            raise UserError(
                f"{path} is cut short or corrupt: {name} ends at byte {end} and the file at {len(self._file.content)}"
            )


@dataclass(frozen=True)
class _Kind:
    """A type of numbers: how they lie in a file, and how they come out."""

    name: str
    #: as they come
    dtype: np.dtype
    block_size: int
    block_bytes: int
    #: rows of bytes to rows of numbers
    floats: Callable[[np.ndarray], np.ndarray]
    quantized: bool


def _kind(number: int, tensor: str, path: Path) -> _Kind:
    if number in _FLOATS:
        dtype = _FLOATS[number]
        return _Kind(dtype.name, dtype, 1, dtype.itemsize, lambda rows: rows.view(dtype), quantized=False)
    try:
        import gguf  # noqa: PLC0415 (an extra)
    except ImportError:
        raise UserError(f"{path} holds quantized tensors, which need the package gguf: pip install gguf") from None
    try:
        kind = gguf.GGMLQuantizationType(number)
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise UserError(f"{path}: {tensor} is of ggml's type {number}, which cannot be read as floats") from None

    def floats(rows: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # the scales of broken blocks may be anything
            return gguf.quants.dequantize(rows, kind)

    return _Kind(kind.name, _FLOAT32, block_size, block_bytes, floats, quantized=True)


def _stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of one tensor in the file, under the name it has here."""
    own, row_axes = shape[1:] if name.startswith(STACKED) else shape, _PLACES[name].row_axes
    return (math.prod(own[-row_axes:]), math.prod(own[:-row_axes])) if row_axes else own


def _read_config(file: GgufFile) -> ModelConfig:
    """What the metadata says the model computes.

    Raises:
        UserError: it is not a plain Llama, or a field is missing or wrong.
    """
    architecture = file.text("general.architecture")
    if architecture != _ARCHITECTURE:
        raise UserError(f"{file.path} holds a model of the architecture {architecture!r}: only {_ARCHITECTURE} is read")
    _require_plain(file)
    hidden_size, num_heads = _integer(file, "embedding_length"), _integer(file, "attention.head_count")
    num_layers = _integer(file, "block_count")
    if num_layers > len(file.tensors):
        raise UserError(
            f"{file.path}: its metadata tells of {num_layers} layers, and it has {len(file.tensors)} tensors"
        )
    if num_heads < 1:
        raise UserError(f"{file.path}: its {_ARCHITECTURE}.attention.head_count is {num_heads}")
    head_width = _integer(file, "attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (width := _integer(file, key, head_width)) != head_width:
            raise UserError(
                f"{file.path} is not a plain Llama: its {_ARCHITECTURE}.{key} is {width} "
                f"and its heads are {head_width} wide"
            )
    embedding = file.tensors.get(_EMBEDDING)
    rope_theta = file.number(f"{_ARCHITECTURE}.rope.freq_base", ModelConfig.rope_theta)
    try:
        return ModelConfig(
            vocab=Vocab(
                text_size=_integer(file, "vocab_size", embedding.shape[0] if embedding else None),
                bos_id=file.integer("tokenizer.ggml.bos_token_id", Vocab.bos_id),
                eos_id=file.integer("tokenizer.ggml.eos_token_id", Vocab.eos_id),
            ),
            hidden_size=hidden_size,
            intermediate_size=_integer(file, "feed_forward_length"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=_integer(file, "attention.head_count_kv", num_heads),
            head_width=head_width,
            rope_theta=rope_theta,
            rope_scaling=read_scaling(file, f"{_ARCHITECTURE}.rope.", head_width, rope_theta),
            rms_norm_eps=file.number(f"{_ARCHITECTURE}.attention.layer_norm_rms_epsilon"),
            tie_word_embeddings=_HEAD not in file.tensors,
            max_context=_integer(file, "context_length"),
        )
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None


def _integer(file: GgufFile, key: str, default: int | None = None) -> int:
    return file.integer(f"{_ARCHITECTURE}.{key}", default)


def _require_plain(file: GgufFile) -> None:
    for key, neutral in _NEUTRAL.items():
        value = file.metadata.get(f"{_ARCHITECTURE}.{key}", neutral[0])
        if not isinstance(value, int | float) or value not in neutral:
            raise UserError(f"{file.path} is not a plain Llama: it has {_ARCHITECTURE}.{key} = {str(value)[:60]}")
