"""LWM's JAX models: what its checkpoint streams call our tensors, how they are laid out there, and both ways between.

Its kernels are (in, out) and its rotary pairs lie as ours do, so that most of it is reshaping. Layers are stacked on
axis 0 or stand one by one; a train state keeps the parameters beside its optimizer. A vision-language model has a
second embedding and a second head for its vision ids; ours has one of each, in which those follow the text ids.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lwm.core.errors import UserError
from lwm.core.files import whole as whole_file
from lwm.core.params import require_same_shapes, shapes_by_name
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.weights.stream_format import DTYPES, Key, StreamLeaf, scan
from lwm.weights.stream_writer import leaf_frame, write_leaf
from lwm.weights.tensor_files import narrowed
from lwm.weights.tensors import STACKED, Tensors, TensorSpec, pieces

LAYERS: Key = ("transformer", "h")
SCANNED: Key = (*LAYERS, "scan_decoder")
#: whose heads several query heads may share
SHARED = ("key", "value")
#: in the order in which LWM writes them
LAYER_NAMES: dict[str, Key] = {
    "key": ("attention", "wk"),
    "output": ("attention", "wo"),
    "query": ("attention", "wq"),
    "value": ("attention", "wv"),
    "attention_norm": ("attention_norm",),
    "gate": ("feed_forward", "w1"),
    "down": ("feed_forward", "w2"),
    "up": ("feed_forward", "w3"),
    "ffn_norm": ("ffn_norm",),
}
TEXT_EMBEDDING: Key = ("transformer", "wte", "embedding")
VISION_EMBEDDING: Key = ("transformer", "vte", "embedding")
FINAL_NORM: Key = ("transformer", "ln_f", "kernel")
TEXT_HEAD: Key = ("lm_head", "kernel")
VISION_HEAD: Key = ("vision_head", "kernel")
#: our tables and the two that each is joined from, with the axis of the vocabulary
TABLES: dict[str, tuple[Key, Key, int]] = {
    "embedding": (TEXT_EMBEDDING, VISION_EMBEDDING, 0),
    "head": (TEXT_HEAD, VISION_HEAD, 1),
}
#: what stands before each key in files of parameters, in wrapped ones and in train states
PREFIXES: tuple[Key, ...] = ((), ("params",), ("params", "params"))
FLOATS = ("float16", "bfloat16", "float32", "float64")
#: the ones that hold any weight, in the model's range
WRITTEN = ("bfloat16", "float32")


def slashed(key: Key) -> str:
    """How LWM and our messages write a key: `transformer/wte/embedding`."""
    return "/".join(key)


def model_leaves(file: Path) -> dict[Key, StreamLeaf]:
    """The parameters in a stream, without the optimizer beside them and without what stands before their keys.

    Raises:
        UserError: the file is not a stream, or not one of a model of LWM's.
    """
    leaves = scan(file)
    for prefix in PREFIXES:
        if (*prefix, *TEXT_EMBEDDING) in leaves:
            return {key[len(prefix) :]: leaf for key, leaf in leaves.items() if key[: len(prefix)] == prefix}
    held = slashed(next(iter(leaves))) if leaves else "no array"
    raise UserError(
        f"{file} is a stream, but not of a model of LWM's: it has no {slashed(TEXT_EMBEDDING)}, and begins with {held}"
    )


def is_scanned(leaves: Mapping[Key, StreamLeaf]) -> bool:
    """Whether the layers are stacked."""
    return any(key[: len(SCANNED)] == SCANNED for key in leaves)


def layer_key(place: Key, name: str) -> Key:
    """Where a tensor of our layers lies, in the stack or in the layer at `place`."""
    return (*place, *LAYER_NAMES[name], "kernel")


def _layer_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """LWM's shape of a layer's tensor: heads and their width are one axis there."""
    if name == "output":
        return (shape[0] * shape[1], shape[2])
    return shape if len(shape) < 3 else (shape[0], shape[1] * shape[2])


def _stored_shapes(config: ModelConfig, scanned: bool) -> dict[Key, tuple[int, ...]]:
    shapes = shapes_by_name(declare(config))
    sizes = (config.vocab.text_size, config.vocab.vision_size)
    stored = {FINAL_NORM: shapes["final_norm"]}
    for table, (text, vision, axis) in TABLES.items():
        for key, size in zip((text, vision), sizes, strict=True):
            if size and table in shapes:
                stored[key] = (size, config.hidden_size) if axis == 0 else (config.hidden_size, size)
    for name in LAYER_NAMES:
        shape = _layer_shape(name, shapes[STACKED + name][1:])
        if scanned:
            stored[layer_key(SCANNED, name)] = (config.num_layers, *shape)
        else:
            stored |= {layer_key((*LAYERS, str(i)), name): shape for i in range(config.num_layers)}
    return stored


class StreamTensors:
    """The tensors of a stream, read from it piece by piece.

    Raises:
        UserError: the file is not a whole stream, or its tensors are not those of `config`: one is missing, unknown or
            of another shape, or is no floating-point tensor.
    """

    def __init__(self, file: Path, config: ModelConfig) -> None:
        leaves = model_leaves(file)
        scanned = is_scanned(leaves)
        require_same_shapes(
            str(file),
            {slashed(key): leaf.shape for key, leaf in leaves.items()},
            "its configuration",
            {slashed(key): shape for key, shape in _stored_shapes(config, scanned).items()},
        )
        self._leaves: dict[str, tuple[StreamLeaf, ...]] = {}
        self.specs: dict[str, TensorSpec] = {}
        for name, shape in shapes_by_name(declare(config)).items():
            if name.startswith(STACKED):
                found, origin, change = _find_layers(leaves, scanned, name.removeprefix(STACKED), shape)
            else:
                keys = [key for key in TABLES[name][:2] if key in leaves] if name in TABLES else [FINAL_NORM]
                found = tuple(leaves[key] for key in keys)
                origin = " + ".join(slashed(leaf.key) for leaf in found)
                change = "joined" if len(keys) > 1 else ""
            self._leaves[name] = found
            self.specs[name] = TensorSpec(shape, _one_dtype(file, origin, found), origin, change)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor, in our layout and its stored dtype. Of layers, only the rows that are asked for are read.

        Raises:
            UserError: the file was cut or is gone since it was opened.
        """
        spec, leaves = self.specs[name], self._leaves[name]
        if any(part.step not in (None, 1) for part in index):
            raise ValueError(f"{name} is read without steps, and the index is {index}")
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, spec.shape, strict=True))
        if name.startswith(STACKED):
            return _read_layers(leaves, spec, index)
        if name in TABLES:
            return _read_table(leaves, spec, index, TABLES[name][2])
        return leaves[0].read(index[0])


def _find_layers(
    leaves: Mapping[Key, StreamLeaf], scanned: bool, name: str, shape: tuple[int, ...]
) -> tuple[tuple[StreamLeaf, ...], str, str]:
    """A leaf for each layer, where they come from, and what is done to them."""
    changes = [] if len(shape) == len(_layer_shape(name, shape[1:])) + 1 else ["heads apart"]
    if scanned:
        stack = leaves[layer_key(SCANNED, name)]
        return tuple(map(stack.row, range(shape[0]))), slashed(stack.key), ", ".join(changes)
    keys = [layer_key((*LAYERS, str(layer)), name) for layer in range(shape[0])]
    before = leaves[keys[0]].key[: -len(keys[0])]
    origin = slashed((*before, *layer_key((*LAYERS, "*"), name)))
    return tuple(leaves[key] for key in keys), origin, ", ".join(["stacked", *changes])


def _one_dtype(file: Path, origin: str, leaves: tuple[StreamLeaf, ...]) -> np.dtype:
    names = sorted({leaf.dtype.name for leaf in leaves})
    if len(names) > 1 or names[0] not in FLOATS:
        raise UserError(f"{file} holds {origin} as {' and '.join(names)}: it should be of one of {', '.join(FLOATS)}")
    return leaves[0].dtype


def _read_layers(leaves: tuple[StreamLeaf, ...], spec: TensorSpec, index: tuple[slice, ...]) -> np.ndarray:
    layers, rows, *rest = index
    wanted = leaves[layers]
    read = np.empty((len(wanted), *_extent(index[1:])), spec.dtype)
    for place, leaf in enumerate(wanted):
        width = leaf.shape[0] // spec.shape[1]  # of its rows to one of ours: in `output` a head has several
        stored = leaf.read(slice(rows.start * width, rows.stop * width))
        read[place] = stored.reshape(-1, *spec.shape[2:])[(slice(None), *rest)]
    return read


def _read_table(leaves: tuple[StreamLeaf, ...], spec: TensorSpec, index: tuple[slice, ...], axis: int) -> np.ndarray:
    """Part of the table that text and vision ids make together; the leaf that has nothing of it is not read."""
    read = np.empty(_extent(index), spec.dtype)
    passed = 0
    for leaf in leaves:
        first = max(index[axis].start - passed, 0)
        last = min(index[axis].stop - passed, leaf.shape[axis])
        if first < last:
            at = slice(passed + first - index[axis].start, passed + last - index[axis].start)
            if axis == 0:
                read[at] = leaf.read(slice(first, last))[:, index[1]]
            else:
                read[:, at] = leaf.read(index[0])[:, first:last]
        passed += leaf.shape[axis]
    return read


def _extent(index: tuple[slice, ...]) -> list[int]:
    return [max(part.stop - part.start, 0) for part in index]


def write_stream(
    file: Path,
    config: ModelConfig,
    tensors: Tensors,
    dtype: str = "bfloat16",
) -> Path:
    """Write a file of parameters that LWM's own code loads, layers stacked; return its path. It appears whole.

    One layer's tensor, or one table, is held at a time. LWM wants a head, so a tied one is written out as a copy, and a
    key and a value head for each query head, so shared ones are repeated.

    Raises:
        UserError: a model that LWM's code cannot hold, tensors that are not those of `config`, a leaf that is too large
            in that dtype or has numbers that it does not hold, or the file cannot be written.
    """
    _require_held_by_lwm(config)
    if dtype not in WRITTEN:
        raise UserError(f"a checkpoint stream is not written as {dtype}: choose one of {', '.join(WRITTEN)}")
    shapes = {name: spec.shape for name, spec in tensors.specs.items()}
    require_same_shapes("the model", shapes, "its configuration", shapes_by_name(declare(config)))
    number, stored = DTYPES[dtype], _stored_shapes(_as_lwm_has_it(config), scanned=True)
    for key, shape in stored.items():  # what does not fit is refused before anything is written
        leaf_frame(key, shape, number)
    file = Path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as scratch, open(scratch, "wb") as stream:
            for key, parts in _parts(config, tensors):
                write_leaf(stream, key, stored[key], number, (narrowed(part, number, slashed(key)) for part in parts))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
    return file


def names_there(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """What `write_stream` calls each of our tensors, and what it does to it."""
    has_heads = {name for name, shape in shapes_by_name(declare(config)).items() if len(shape) == 4}
    times, names = config.num_heads // config.num_kv_heads, {}
    for name in LAYER_NAMES:
        change = "heads joined" if STACKED + name in has_heads else ""
        if name in SHARED and times > 1:
            change = f"heads repeated {times} times, joined"
        names[STACKED + name] = slashed(layer_key(SCANNED, name)), change
    for table, (text, vision, _) in TABLES.items():
        split = (f"{slashed(text)} and {slashed(vision)}", "split into text and vision")
        names[table] = split if config.vocab.vision_size else (slashed(text), "")
    return names | {"final_norm": (slashed(FINAL_NORM), "")}


def _as_lwm_has_it(config: ModelConfig) -> ModelConfig:
    return replace(config, tie_word_embeddings=False, num_kv_heads=config.num_heads)


def _require_held_by_lwm(config: ModelConfig) -> None:
    D, H, h = config.hidden_size, config.num_heads, config.head_width
    scaling = config.rope_scaling
    problems = {
        f"num_heads {H} times head_width {h} is not hidden_size {D}": H * h != D,
        f"rope_scaling is {scaling}": scaling is not None,
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise UserError(f"LWM's code has no place for this model: {' and '.join(found)}")


def _parts(config: ModelConfig, tensors: Tensors) -> Iterator[tuple[Key, Iterator[np.ndarray]]]:
    """Each leaf in LWM's order, in parts that follow each other in it."""
    text, vision = slice(0, config.vocab.text_size), slice(config.vocab.text_size, config.vocab.size)
    width = slice(0, config.hidden_size)

    def embedding(ids: slice) -> Iterator[np.ndarray]:
        yield tensors.read("embedding", (ids, width))

    def head(ids: slice) -> Iterator[np.ndarray]:
        if config.tie_word_embeddings:
            yield tensors.read("embedding", (ids, width)).T
        else:
            yield tensors.read("head", (width, ids))

    sees = config.vocab.vision_size > 0
    yield TEXT_EMBEDDING, embedding(text)
    if sees:
        yield VISION_EMBEDDING, embedding(vision)
    times = config.num_heads // config.num_kv_heads
    for name in LAYER_NAMES:
        layers = pieces(tensors, STACKED + name)
        if name in SHARED and times > 1:
            layers = (np.repeat(layer, times, axis=2) for layer in layers)
        yield layer_key(SCANNED, name), layers
    yield FINAL_NORM, pieces(tensors, "final_norm")
    if sees:
        yield VISION_HEAD, head(vision)
    yield TEXT_HEAD, head(text)
