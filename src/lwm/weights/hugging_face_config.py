"""The `config.json` of a Hugging Face Llama-family model, there and back.

What changes the model's numbers is either understood or refused by name. A key that is not known is let pass only
where it says nothing: null, false, 0 or empty.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lwm.core.config import from_json
from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.model.config import MOST_OF_NUMBERS, MOST_OF_SIZES, ModelConfig
from lwm.model.rope import DynamicScaling, RopeScaling, scaling_from_json

#: model_type, architecture and `transformers`' defaults where they differ between the two
FAMILY = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_DEFAULT_CONTEXT = {"llama": 2048, "mistral": 131_072}
_DEFAULT_KV_HEADS = {"llama": None, "mistral": 8}
_DEFAULT_WINDOW = {"llama": None, "mistral": 4096}
#: where a vision-language model of ours keeps what its ids mean
VOCAB = "lwm_vocab"
#: where a model of ours keeps its context, if `max_position_embeddings` has to be another length
CONTEXT = "lwm_max_context"

#: what they say does not change a forward pass, or is said by the tensors
_OF_NO_EFFECT = frozenset((
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "_attn_implementation_autoset", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
    "unk_token_id", "initializer_range", "use_cache", "max_length", "pretraining_tp", "auto_map", "id2label",
    "label2id", "return_dict", "chunk_size_feed_forward", "problem_type", "is_llama_config", "task_specific_params",
    "max_window_layers", "output_attentions", "output_hidden_states", "is_decoder", "tokenizer_class",
    "max_sequence_length", "transformers.js_config", "top_k", "top_p", "temperature", "num_beams", "length_penalty",
    "repetition_penalty", "do_sample", "min_length", "diversity_penalty", "early_stopping",
    "encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "num_beam_groups", "num_return_sequences", "typical_p",
    "remove_invalid_values", "cross_attention_hidden_size", "max_new_tokens", "sep_token_id", "unsloth_fixed",
    "unsloth_version",
))  # fmt: skip
_UNDERSTOOD = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings max_position_embeddings hidden_act "
    f"attention_bias mlp_bias sliding_window layer_types partial_rotary_factor {VOCAB} {CONTEXT}".split()
)


def config_from_hugging_face(values: dict[str, Any], path: Path) -> ModelConfig:
    """What a Llama-family model computes.

    Raises:
        UserError: another architecture, an option that we do not compute, or a field that is missing or of another
            kind; names `path` and the field.
    """
    try:
        return _config(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _config(values: dict[str, Any]) -> ModelConfig:
    kind = _family(values)
    _refuse_options(values, kind)
    heads = _number(values, "num_attention_heads")
    hidden_size = _number(values, "hidden_size")
    if values.get("head_dim") is None and hidden_size % heads:
        raise UserError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}, and no head_dim")
    context = _number(values, "max_position_embeddings", _DEFAULT_CONTEXT[kind])
    theta, scaling = _rotary(values, context)
    return ModelConfig(
        vocab=_vocab(values),
        hidden_size=hidden_size,
        intermediate_size=_number(values, "intermediate_size"),
        num_layers=_number(values, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_number(values, "num_key_value_heads", _DEFAULT_KV_HEADS[kind] or heads),
        head_width=_number(values, "head_dim", hidden_size // heads),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_number(values, "rms_norm_eps", 1e-6, float),
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        max_context=_number(values, CONTEXT, context),
    )


def _family(values: dict[str, Any]) -> str:
    architectures, kind = values.get("architectures"), values.get("model_type")
    if architectures and not isinstance(architectures, list):
        raise UserError(f"architectures is {architectures!r:.80}, which is not a list")
    named = architectures[0] if architectures else None
    if named is not None and named not in FAMILY.values():
        raise UserError(f"its architecture is {named!r:.80}: known are {', '.join(FAMILY.values())}")
    if kind is None and named is not None:
        kind = next(known for known, architecture in FAMILY.items() if architecture == named)
    if not isinstance(kind, str) or kind not in FAMILY:
        raise UserError(f"its model_type is {kind!r:.80}: known are {', '.join(FAMILY)}, and lwm for models of ours")
    return kind


def _refuse_options(values: dict[str, Any], kind: str) -> None:
    for name, wanted in {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "partial_rotary_factor": 1,
    }.items():
        if values.get(name, wanted) not in (wanted, None):
            raise UserError(f"{name} is {values[name]!r:.80}: only {wanted!r} is computed")
    window = values.get("sliding_window", _DEFAULT_WINDOW[kind])
    if window is not None:
        raise UserError(f"sliding_window is {window!r:.80}: attention through a window is not computed, only over all")
    layers = values.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise UserError("layer_types has layers other than full_attention")
    if layers and len(layers) != (num_layers := _number(values, "num_hidden_layers")):
        raise UserError(f"layer_types has {len(layers)} layers, and num_hidden_layers is {num_layers}")
    for name in sorted(values.keys() - _UNDERSTOOD - _OF_NO_EFFECT):
        if values[name]:
            raise UserError(
                f"{name} is {values[name]!r:.80}, which is not known here: take it out of the file if the model "
                "computes the same without it"
            )


def _rotary(values: dict[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    """The base and the scaling, whether they stand in `rope_parameters` (since transformers 5) or by themselves."""
    theta = _number(values, "rope_theta", 10_000.0, float)
    stated = [name for name in ("rope_scaling", "rope_parameters") if values.get(name)]
    found = [_stated_rotary(values[name], name, theta, context) for name in stated]
    if len(found) == 2 and found[0] != found[1]:
        raise UserError("rope_scaling and rope_parameters say different things: take the one out that is not meant")
    return found[0] if found else (theta, None)


def _stated_rotary(stated: object, where: str, theta: float, context: int) -> tuple[float, RopeScaling | None]:
    """The base and the scaling of one block, which is called `where`; `theta` is the base that stands beside it."""
    if not isinstance(stated, dict):
        raise UserError(f"{where} is {stated!r:.80}, which is not an object")
    fields = {name: value for name, value in stated.items() if value is not None}
    theta = _number(fields, "rope_theta", theta, float)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if not isinstance(kind, str):
        raise UserError(f"{where} has a rope_type of {kind!r:.80}, which is not text")
    for name, value in stated.items():
        if isinstance(value, dict):
            raise UserError(f"{where} has a block {name!r:.80}: positions that differ between layers are not computed")
    if fields.get("partial_rotary_factor", 1) != 1:
        raise UserError("partial_rotary_factor is not 1: positions that turn part of a head are not computed")
    if kind == "default":
        return theta, None
    for said in ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"):
        fields.pop(said, None)
    if kind == "dynamic":  # `transformers` goes by the context, whatever else stands there
        fields["original_max_position_embeddings"] = context
    if kind in ("llama3", "yarn"):
        fields.setdefault("original_max_position_embeddings", context)
    if kind == "yarn" and isinstance(original := fields["original_max_position_embeddings"], int) and original > 0:
        fields.setdefault("factor", context / original)
    return theta, scaling_from_json({"rope_type": kind, **fields}, f"its {where}")


def _vocab(values: dict[str, Any]) -> Vocab:
    size = _number(values, "vocab_size")
    if VOCAB in values:
        vocab = from_json(Vocab, values[VOCAB], f"the {VOCAB} block")
        if vocab.size != size:
            raise UserError(f"vocab_size is {size} and {VOCAB} has {vocab.size} ids")
        return vocab
    bos_id, eos_id = _special(values, "bos_token_id", 1, size), _special(values, "eos_token_id", 2, size)
    return Vocab(text_size=size, bos_id=bos_id, eos_id=eos_id)


def _special(values: dict[str, Any], name: str, default: int, size: int) -> int:
    found = values.get(name)
    first = found[0] if isinstance(found, list) and found else found
    return first if type(first) is int and 0 <= first < size else min(default, size - 1)


def _number(values: dict[str, Any], name: str, default: Any = None, kind: type = int) -> Any:
    value: Any = default if values.get(name) is None else values[name]
    if value is None:
        raise UserError(f"it has no {name}")
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise UserError(f"{name} is {value!r:.80}, which is not {kind.__name__}")
    if not 0 < value <= (MOST_OF_SIZES if kind is int else MOST_OF_NUMBERS):
        raise UserError(f"{name} is {value!s:.80}: it must be positive, and of a size that a model has")
    return kind(value)


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name) or False
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r:.80}, which is neither true nor false")
    return value


def config_to_hugging_face(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that `transformers` 4 and 5 read as a `LlamaForCausalLM`.

    A model that sees is one whose vocabulary goes on behind the text; the block `lwm_vocab` says where. A context that
    is not the length that `transformers` has to be told stands under `lwm_max_context`.
    """
    vocab, scaling, context = config.vocab, config.rope_scaling, config.max_context
    stated = None
    if scaling is not None:
        stated = {name: value for name, value in dataclasses.asdict(scaling).items() if value is not None}
    if isinstance(scaling, DynamicScaling):  # `transformers` takes the context for the trained length
        context = scaling.original_max_position_embeddings
    values = {
        "architectures": [FAMILY["llama"]],
        "model_type": "llama",
        "vocab_size": vocab.size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": stated,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": context,
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
        "torch_dtype": dtype,
    }
    ours: dict[str, Any] = {VOCAB: dataclasses.asdict(vocab)} if vocab.vision_size else {}
    return values | ours | ({CONTEXT: config.max_context} if config.max_context != context else {})
