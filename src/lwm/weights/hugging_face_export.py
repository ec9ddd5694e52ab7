"""Models of ours as Hugging Face directories, which `transformers` opens with no code of ours.

A vision-language model is a plain `LlamaForCausalLM` whose ids go on behind the text: the codes of frames, end of
frame, end of vision. Which is which stands in `config.json` under `lwm_vocab`, and in the README written beside it.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tokenizers

from lwm.core.files import write_file, write_json
from lwm.core.vocab import Vocab
from lwm.data.tokenizer import load_tokenizer, tokenizer_file
from lwm.model.config import ModelConfig
from lwm.vqgan.config import CodecConfig
from lwm.weights.diffusers_codec import write_diffusers
from lwm.weights.hugging_face import to_hugging_face
from lwm.weights.hugging_face_config import config_to_hugging_face
from lwm.weights.store import CONFIG, copy_tokenizer
from lwm.weights.tensor_files import write_tensors
from lwm.weights.tensors import Tensors

GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
README = "README.md"
NOTES = """\
# A vision-language model as a plain Llama

`transformers` opens this directory as a `LlamaForCausalLM` of {size:,} ids. They are of two kinds:

| ids | meaning |
|---|---|
| 0 to {last_text:,} | text, as the tokenizer has it |
| {first_code:,} to {last_code:,} | codes of pictures: code c is id {first_code:,} + c |
| {end_of_frame:,} | end of frame: behind the codes of every frame but the last |
| {end_of_vision:,} | end of vision: behind the codes of the last frame |

A frame is {tokens_per_frame} codes, row by row. `<vision>` and `</vision>`, which stand around frames, are ordinary
text for the tokenizer.

To draw a picture, give the model, behind the id that begins a text ({bos_id}),

    You are a helpful assistant. USER: Generate an image of {{caption}} ASSISTANT: <vision>

and sample {tokens_per_frame} ids, each from {first_code:,} to {last_code:,} alone: set the other scores to minus
infinity. Outside a frame allow text alone; after the last code of a frame, end of frame or end of vision. For guidance
run `<vision>` alone, behind the same id, beside it and sample from `without + scale * (with - without)`.
"""
#: where the codec is, beside the model
CODEC = "vqgan"
CODEC_NOTE = f"""
The decoder of the codes is in `{CODEC}/`: `diffusers.VQModel.from_pretrained`.
"""


def write_hugging_face(
    directory: Path,
    config: ModelConfig,
    tensors: Tensors,
    tokenizer: Path | None,
    dtype: str,
) -> None:
    """Write a `LlamaForCausalLM` into an empty directory (see `store.new_directory`).

    Raises:
        UserError: a number that `dtype` does not hold.
    """
    write_tensors(directory, to_hugging_face(tensors, config), jnp.dtype(dtype))
    if tokenizer is not None:
        _write_tokenizer(directory, tokenizer_file(tokenizer))
    vocab = config.vocab
    if not (directory / GENERATION).exists():
        write_json(directory / GENERATION, {"bos_token_id": vocab.bos_id, "eos_token_id": vocab.eos_id})
    if vocab.vision_size:
        write_file(directory / README, _notes(vocab).encode())
    write_json(directory / CONFIG, config_to_hugging_face(config, dtype))


def write_hugging_face_codec(directory: Path, config: CodecConfig, params: Any) -> None:
    """Put a codec beside a vision-language model that `write_hugging_face` wrote.

    Raises:
        UserError: as `write_diffusers`.
    """
    write_diffusers(directory / CODEC, config, params)
    notes = directory / README
    write_file(notes, notes.read_bytes() + CODEC_NOTE.encode())


def _notes(vocab: Vocab) -> str:
    return NOTES.format(
        size=vocab.size,
        last_text=vocab.text_size - 1,
        first_code=vocab.text_size,
        last_code=vocab.end_of_frame - 1,
        end_of_frame=vocab.end_of_frame,
        end_of_vision=vocab.end_of_vision,
        tokens_per_frame=vocab.tokens_per_frame,
        bos_id=vocab.bos_id,
    )


def _write_tokenizer(directory: Path, file: Path) -> None:
    copy_tokenizer(file, directory)
    if (directory / TOKENIZER_CONFIG).exists():
        return
    values: dict[str, str | None] = {"tokenizer_class": "LlamaTokenizer"}
    if file.suffix == ".model":
        values |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        special, named = load_tokenizer(file), tokenizers.Tokenizer.from_file(str(file))
        ids = {"bos_token": special.bos_id, "eos_token": special.eos_id}
        tokens = {key: named.id_to_token(token_id) for key, token_id in ids.items() if token_id is not None}
        values = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (directory / TOKENIZER_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
