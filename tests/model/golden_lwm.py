"""The original LWM's tiny models as ours. Of two embeddings and two heads one comes after the other: one id space."""

from pathlib import Path

import jax
import numpy as np

from lwm.core.params import abstract, tensor_name
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.weights.lwm_stream import StreamTensors
from lwm.weights.tensors import whole

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT_SIZE = 512
VOCAB = Vocab(text_size=TEXT_SIZE, vision_size=8448, num_codes=8192, tokens_per_frame=256)
CONFIG = ModelConfig(VOCAB, 64, 160, 2, 4, 4, 16, rope_theta=1e4, max_context=1024)


def read(name: str, config: ModelConfig) -> Transformer:
    """The parameters of a golden checkpoint stream."""
    tensors = StreamTensors(GOLDEN / name, config)

    def leaf(path: tuple, declared: jax.ShapeDtypeStruct) -> np.ndarray:
        return tensors.read(tensor_name(path), whole(declared.shape))

    return jax.tree.map_with_path(leaf, abstract(declare(config), np.float32))


def parted(params: Transformer) -> dict[str, np.ndarray]:
    """Our parameters under LWM's names, as its forward pass has them: not by way of the reader of its streams."""
    layers = params.layers
    named = {
        "attention_norm": layers.attention_norm,
        "attention/wq": np.reshape(layers.query, (2, 64, 64)),
        "attention/wk": np.reshape(layers.key, (2, 64, 64)),
        "attention/wv": np.reshape(layers.value, (2, 64, 64)),
        "attention/wo": np.reshape(layers.output, (2, 64, 64)),
        "ffn_norm": layers.ffn_norm,
        "feed_forward/w1": layers.gate,
        "feed_forward/w3": layers.up,
        "feed_forward/w2": layers.down,
    }
    arrays = {f"transformer/h/scan_decoder/{name}/kernel": array for name, array in named.items()}
    arrays |= {
        "transformer/wte/embedding": params.embedding[:TEXT_SIZE],
        "transformer/vte/embedding": params.embedding[TEXT_SIZE:],
        "transformer/ln_f/kernel": params.final_norm,
        "lm_head/kernel": params.head[:, :TEXT_SIZE],
        "vision_head/kernel": params.head[:, TEXT_SIZE:],
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def ids(tokens: np.ndarray, vision_masks: np.ndarray) -> np.ndarray:
    """LWM's pairs of id and modality as ids of one space."""
    return np.where(vision_masks > 0, tokens + TEXT_SIZE, tokens).astype(np.int32)
