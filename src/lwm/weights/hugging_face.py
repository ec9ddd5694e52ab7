"""Llama-family weights as Hugging Face `transformers` names and lays them out, there and back.

Its matrices are (out, in) and one tensor a layer; ours are (in, out) and stacked over layers. Its rotary positions
turn features i and i + h/2 together; ours turn 2i and 2i + 1, so the features of queries and keys are reordered.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from lwm.core.errors import UserError
from lwm.core.params import require_same_shapes
from lwm.model.config import ModelConfig
from lwm.weights.tensor_files import Outgoing
from lwm.weights.tensors import STACKED, Tensors, TensorSpec, whole

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
#: buffers that old versions of `transformers` stored beside the weights
_IGNORED = ("rotary_emb.inv_freq",)
TRANSPOSED = "transposed"


@dataclass(frozen=True)
class _Kind:
    """A tensor of a layer: its name there, its shape here, and how one becomes the other."""

    name: str
    #: of one layer, ours
    shape: tuple[int, ...]
    #: axes of it that make up the rows' length (in) of the matrix; 0: it is a vector
    num_in: int = 0
    #: the heads' features are in halves there
    rotary: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        if not self.num_in:
            return self.shape
        fan_in, fan_out = (int(np.prod(part)) for part in (self.shape[: self.num_in], self.shape[self.num_in :]))
        return fan_out, fan_in

    @property
    def change(self) -> str:
        if not self.num_in:
            return ""
        return f"{TRANSPOSED}, rotary halves to pairs" if self.rotary else TRANSPOSED

    def ours(self, stored: np.ndarray) -> np.ndarray:
        tensor = stored.T.reshape(self.shape) if self.num_in else stored
        return interleave(tensor) if self.rotary else tensor

    def theirs(self, tensor: np.ndarray) -> np.ndarray:
        tensor = halve(tensor) if self.rotary else tensor
        return tensor.reshape(self.stored_shape[::-1]).T if self.num_in else tensor


def _layer_kinds(config: ModelConfig) -> dict[str, _Kind]:
    D, F, h = config.hidden_size, config.intermediate_size, config.head_width
    H, K = config.num_heads, config.num_kv_heads
    return {
        "attention_norm": _Kind("input_layernorm", (D,)),
        "query": _Kind("self_attn.q_proj", (D, H, h), 1, rotary=True),
        "key": _Kind("self_attn.k_proj", (D, K, h), 1, rotary=True),
        "value": _Kind("self_attn.v_proj", (D, K, h), 1),
        "output": _Kind("self_attn.o_proj", (H, h, D), 2),
        "ffn_norm": _Kind("post_attention_layernorm", (D,)),
        "gate": _Kind("mlp.gate_proj", (D, F), 1),
        "up": _Kind("mlp.up_proj", (D, F), 1),
        "down": _Kind("mlp.down_proj", (F, D), 1),
    }


class HuggingFaceTensors:
    """The tensors of a `LlamaForCausalLM`, as ours.

    `stored` is its state dictionary under its own names, `where` what messages call it.

    Raises:
        UserError: a tensor is missing, unknown (a bias, say) or of another shape than `config` says.
    """

    def __init__(self, stored: Tensors, config: ModelConfig, where: str) -> None:
        self._stored, self._kinds = stored, _layer_kinds(config)
        if config.num_layers > len(stored.specs):  # before anything is made of a number of layers that may be any
            raise UserError(
                f"the tensors in {where} are not those of its config.json: it tells of {config.num_layers} layers, and "
                f"there are {len(stored.specs)} tensors"
            )
        wanted = _stored_shapes(config)
        tied = {HEAD} if config.tie_word_embeddings else set()
        found = {
            name: spec.shape
            for name, spec in stored.specs.items()
            if name not in tied and not name.endswith(_IGNORED)
        }  # fmt: skip
        require_same_shapes(where, found, "its config.json", wanted)
        (V, D), L = wanted[EMBEDDING], config.num_layers
        self.specs = {"embedding": TensorSpec((V, D), stored.specs[EMBEDDING].dtype, EMBEDDING)}
        for name, kind in self._kinds.items():
            dtypes = {stored.specs[_layer_name(kind, layer)].dtype for layer in range(L)}
            dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
            self.specs[STACKED + name] = TensorSpec((L, *kind.shape), dtype, _layer_name(kind, "*"), kind.change)
        self.specs["final_norm"] = TensorSpec((D,), stored.specs[NORM].dtype, NORM)
        if not config.tie_word_embeddings:
            self.specs["head"] = TensorSpec((D, V), stored.specs[HEAD].dtype, HEAD, TRANSPOSED)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        if not name.startswith(STACKED):
            origin = self.specs[name].origin
            return self._stored.read(HEAD, index[::-1]).T if name == "head" else self._stored.read(origin, index)
        kind = self._kinds[name.removeprefix(STACKED)]
        spec = self.specs[name]
        layers = [self._layer(kind, layer)[index[1:]] for layer in range(spec.shape[0])[index[0]]]
        return np.stack([layer.astype(spec.dtype, copy=False) for layer in layers])

    def _layer(self, kind: _Kind, layer: int) -> np.ndarray:
        return kind.ours(self._stored.read(_layer_name(kind, layer), whole(kind.stored_shape)))


def _layer_name(kind: _Kind, layer: int | str) -> str:
    return f"model.layers.{layer}.{kind.name}.weight"


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    V, D = config.vocab.size, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (V, D)}
    for layer in range(config.num_layers):
        shapes |= {_layer_name(kind, layer): kind.stored_shape for kind in _layer_kinds(config).values()}
    return shapes | {NORM: (D,)} | ({} if config.tie_word_embeddings else {HEAD: (V, D)})


def to_hugging_face(tensors: Tensors, config: ModelConfig) -> dict[str, Outgoing]:
    """Our tensors as a `LlamaForCausalLM` has them, in the order of its layers."""
    V, D = config.vocab.size, config.hidden_size

    def rows(name: str, transposed: bool = False) -> Iterator[np.ndarray]:
        tensor = tensors.read(name, whole(tensors.specs[name].shape))
        yield tensor.T if transposed else tensor

    def layer_tensor(name: str, kind: _Kind, layer: int) -> Iterator[np.ndarray]:
        (tensor,) = tensors.read(STACKED + name, (slice(layer, layer + 1), *whole(kind.shape)))
        yield kind.theirs(tensor)

    out = {EMBEDDING: Outgoing((V, D), partial(rows, "embedding"))}
    for layer in range(config.num_layers):
        for name, kind in _layer_kinds(config).items():
            out[_layer_name(kind, layer)] = Outgoing(kind.stored_shape, partial(layer_tensor, name, kind, layer))
    out[NORM] = Outgoing((D,), partial(rows, "final_norm"))
    if not config.tie_word_embeddings:
        out[HEAD] = Outgoing((V, D), partial(rows, "head", transposed=True))
    return out


def names_there(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """What `to_hugging_face` calls each of our tensors, and what it does to it."""
    names = {"embedding": (EMBEDDING, "")}
    for name, kind in _layer_kinds(config).items():
        change = f"{TRANSPOSED}, rotary pairs to halves" if kind.rotary else TRANSPOSED if kind.num_in else ""
        names[STACKED + name] = (_layer_name(kind, "*"), change)
    names["final_norm"] = (NORM, "")
    return names if config.tie_word_embeddings else names | {"head": (HEAD, TRANSPOSED)}


def interleave(heads: np.ndarray) -> np.ndarray:
    """Reorder the last axis from halves (x0 .. | y0 ..) to pairs (x0 y0 x1 y1 ..)."""
    halves = heads.reshape(*heads.shape[:-1], 2, -1)
    return halves.swapaxes(-1, -2).reshape(heads.shape)


def halve(heads: np.ndarray) -> np.ndarray:
    """Inverse of `interleave`."""
    pairs = heads.reshape(*heads.shape[:-1], -1, 2)
    return pairs.swapaxes(-1, -2).reshape(heads.shape)
