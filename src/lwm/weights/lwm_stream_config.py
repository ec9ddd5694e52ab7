"""What a checkpoint stream of LWM's is a model of: its sizes are in the stream, the rest stands beside it or nowhere.

Neither the number of heads nor the rotary base can be seen in shapes. LWM's JAX models come without a configuration
file; then the heads are those of LWM's size of the same widths, and the base has to be given. The context may be left
out where LWM's own models have that base: it is the longest of theirs.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lwm.core.errors import UserError
from lwm.core.files import read_json
from lwm.core.vocab import Vocab
from lwm.model.config import ROPE_THETA, SIZES, ModelConfig
from lwm.weights.lwm_stream import (
    LAYERS,
    SCANNED,
    TEXT_EMBEDDING,
    TEXT_HEAD,
    VISION_EMBEDDING,
    is_scanned,
    layer_key,
    model_leaves,
    slashed,
)
from lwm.weights.stream_format import Key

#: LWM's code has them fixed: the vision ids that are no codes, and the codes of a frame
SPARE_IDS, TOKENS_PER_FRAME = 256, 256
#: what no stream says and configurations have under one of these names, by the flag that gives it
UNSEEN = {"--theta": ("theta", "rope_theta"), "--max-context": ("max_sequence_length", "max_position_embeddings")}


@dataclass(frozen=True)
class StreamSizes:
    """What the shapes in a stream tell of its model."""

    text_size: int
    #: 0 of a text model
    vision_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    #: False where the embedding serves as head
    has_head: bool


def sizes_in(file: Path) -> StreamSizes:
    """The sizes of the model in a stream, of which only the heads of leaves are read.

    Raises:
        UserError: not a stream of one of LWM's models.
    """
    leaves = model_leaves(file)

    def shape(key: Key, rank: int) -> tuple[int, ...]:
        if key not in leaves:
            raise UserError(f"{file} has no {slashed(key)}, which every model of LWM's has")
        if len(leaves[key].shape) != rank:
            raise UserError(f"{file} has {slashed(key)} of shape {leaves[key].shape}, which should have {rank} axes")
        return leaves[key].shape

    text_size, hidden_size = shape(TEXT_EMBEDDING, 2)
    vision_size = shape(VISION_EMBEDDING, 2)[0] if VISION_EMBEDDING in leaves else 0
    if is_scanned(leaves):
        num_layers, _, intermediate_size = shape(layer_key(SCANNED, "gate"), 3)
    else:
        _, intermediate_size = shape(layer_key((*LAYERS, "0"), "gate"), 2)
        depth = len(LAYERS)
        num_layers = len({key[depth] for key in leaves if len(key) > depth and key[:depth] == LAYERS})
    return StreamSizes(text_size, vision_size, hidden_size, intermediate_size, num_layers, TEXT_HEAD in leaves)


def config_of_stream(file: Path, *, json: Path | None, theta: float | None, max_context: int | None) -> ModelConfig:
    """The model in a stream: its sizes from the file, the rest from a configuration or from LWM's size of its widths.

    `json` is a configuration as LWM's code has it, or the `config.json` of a model of ours. `theta`, the rotary base,
    and `max_context`, in tokens, come before what it says. Of vision ids all but 256 are codes, as in LWM's models.

    Raises:
        UserError: the stream and the configuration are not of one model, or something is known from neither (says
            which flag to give).
    """
    if theta is not None and not (theta > 0 and math.isfinite(theta)):
        raise UserError(f"--theta {theta} is no rotary base: it should be positive and finite")
    sizes = sizes_in(file)
    values = _known_by_widths(file, sizes) if json is None else read_json(json, f"cannot read {json}")
    try:
        if "vocab" in values:
            config = _ours(values, theta, max_context)
        else:
            config = _theirs(values, sizes.vision_size, theta, max_context)
    except UserError as error:
        raise UserError(f"{file if json is None else json}: {error}") from None
    _require_one_model(config, sizes, f"{json} is not the configuration of {file}")
    return replace(config, tie_word_embeddings=config.tie_word_embeddings and not sizes.has_head)


def _known_by_widths(file: Path, sizes: StreamSizes) -> dict[str, Any]:
    """What LWM's configuration of these widths would say."""
    widths = (sizes.hidden_size, sizes.intermediate_size, sizes.num_layers)
    for known in SIZES.values():
        if (known.hidden_size, known.intermediate_size, known.num_layers) == widths:
            return {
                "vocab_size": sizes.text_size,
                "hidden_size": known.hidden_size,
                "intermediate_size": known.intermediate_size,
                "num_hidden_layers": known.num_layers,
                "num_attention_heads": known.num_heads,
                "rms_norm_eps": known.rms_norm_eps,
            }
    raise UserError(
        f"{file} has a hidden_size of {widths[0]}, an intermediate_size of {widths[1]} and {widths[2]} layers, as none "
        "of LWM's sizes has, so that its number of heads is not known: give its configuration file with --config"
    )


def _ours(values: dict[str, Any], theta: float | None, max_context: int | None) -> ModelConfig:
    config = ModelConfig.from_json({name: value for name, value in values.items() if name != "model_type"})
    theta = config.rope_theta if theta is None else float(theta)
    return replace(config, rope_theta=theta, max_context=config.max_context if max_context is None else max_context)


def _theirs(values: dict[str, Any], vision_size: int, theta: float | None, max_context: int | None) -> ModelConfig:
    given = {"theta": theta, "max_sequence_length": max_context}
    values = values | {name: value for name, value in given.items() if value is not None}
    if vision_size == 0 or values.get("vision_vocab_size") is None:  # of a text model it may be stated, too
        values["vision_vocab_size"] = vision_size
    if _first(values, UNSEEN["--max-context"]) is None:
        base = _first(values, UNSEEN["--theta"])
        values["max_sequence_length"] = max((n for n, known in ROPE_THETA.items() if known == base), default=None)
    if missing := [flag for flag, names in UNSEEN.items() if _first(values, names) is None]:
        bases = ", ".join(f"{base:g} at {length}" for length, base in ROPE_THETA.items())
        raise UserError(
            f"no shape and no configuration says its {' and '.join(UNSEEN[flag][0] for flag in missing)}: give "
            f"{' and '.join(missing)} (LWM's text models have a theta of {bases} tokens of context)"
        )
    return config_from_json(values)


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _require_one_model(config: ModelConfig, sizes: StreamSizes, otherwise: str) -> None:
    said = {
        "a vocabulary of text": config.vocab.text_size,
        "a vocabulary of vision": config.vocab.vision_size,
        "a hidden_size": config.hidden_size,
        "an intermediate_size": config.intermediate_size,
        "a number of layers": config.num_layers,
    }
    seen = [sizes.text_size, sizes.vision_size, sizes.hidden_size, sizes.intermediate_size, sizes.num_layers]
    for (name, value), stored in zip(said.items(), seen, strict=True):
        if value != stored:
            raise UserError(f"{otherwise}: it says {name} of {value}, and the tensors have {stored}")


def config_from_json(values: Mapping[str, Any]) -> ModelConfig:
    """The model that LWM's configuration describes. What it says of how to compute is passed over.

    Raises:
        UserError: a key is missing, or its value is impossible or of another kind.
    """

    def number(name: str, default: int | None = None) -> int:
        value = values.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise UserError(f"LWM's configuration has {name} {value!r}, which should be a whole number")
        return value

    hidden_size, num_heads = number("hidden_size"), number("num_attention_heads")
    if not num_heads or hidden_size % num_heads:
        raise UserError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
    head_width = hidden_size // num_heads
    computed = {"num_key_value_heads": num_heads, "head_dim": head_width, "rope_scaling": None, "rope_parameters": None}
    for name, wanted in computed.items():
        if values.get(name) and values[name] != wanted:
            raise UserError(f"LWM's configuration has {name} {values[name]!r:.80}, and its code computes {wanted}")
    vision_size = number("vision_vocab_size", 0)
    spare = number("spare_vision_ids", SPARE_IDS)
    if 0 < vision_size <= spare:
        raise UserError(f"of {vision_size} vision ids none are codes: {spare} are not (spare_vision_ids)")
    vocab = Vocab(
        text_size=number("vocab_size"),
        vision_size=vision_size,
        num_codes=vision_size - spare if vision_size else 0,
        tokens_per_frame=number("tokens_per_frame", TOKENS_PER_FRAME) if vision_size else 0,
        bos_id=number("bos_token_id", Vocab.bos_id),
        eos_id=number("eos_token_id", Vocab.eos_id),
    )
    theta, max_context = (_first(values, names) for names in UNSEEN.values())
    optional = {name: values[name] for name in ("rms_norm_eps", "tie_word_embeddings") if values.get(name) is not None}
    return ModelConfig.from_json(
        {
            "vocab": asdict(vocab),
            "hidden_size": hidden_size,
            "intermediate_size": number("intermediate_size"),
            "num_layers": number("num_hidden_layers"),
            "num_heads": num_heads,
            "num_kv_heads": num_heads,
            "head_width": head_width,
            "rope_theta": float(theta) if type(theta) is int else theta,
            "max_context": max_context,
            **optional,
        }
    )


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A configuration as LWM's code has it; two keys that it does not know say what its code has fixed."""
    vocab = config.vocab
    vision = {
        "vision_vocab_size": vocab.vision_size,
        "spare_vision_ids": vocab.vision_size - vocab.num_codes,
        "tokens_per_frame": vocab.tokens_per_frame,
    }
    return {
        "vocab_size": vocab.text_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_sequence_length": config.max_context,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": False,
        "theta": config.rope_theta,
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
        **(vision if vocab.vision_size else {}),
    }
