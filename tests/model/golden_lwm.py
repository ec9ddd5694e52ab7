"""The original LWM's tiny models as ours. Of two embeddings and two heads one comes after the other: one id space."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.model.layers import Layer
from lwm.model.transformer import Transformer

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT_SIZE = 512
VOCAB = Vocab(text_size=TEXT_SIZE, vision_size=8448, num_codes=8192, tokens_per_frame=256)
CONFIG = ModelConfig(VOCAB, 64, 160, 2, 4, 4, 16, rope_theta=1e4, max_context=1024)


def joined(stored: Mapping[str, np.ndarray]) -> Transformer:
    """Arrays under LWM's names as our parameters."""
    embeddings = [stored[f"transformer/{name}/embedding"] for name in ("wte", "vte")]
    return Transformer(
        embedding=np.concatenate(embeddings),
        layers=stacked_layers(stored),
        final_norm=stored["transformer/ln_f/kernel"],
        head=np.concatenate([stored["lm_head/kernel"], stored["vision_head/kernel"]], axis=1),
    )


def stacked_layers(stored: Mapping[str, np.ndarray]) -> Layer:
    """The layers of either tiny model: LWM's names, stacked on axis 0."""

    def layers(name: str, *shape: int) -> np.ndarray:
        return stored[f"transformer/h/scan_decoder/{name}/kernel"].reshape(2, *shape)

    return Layer(
        attention_norm=layers("attention_norm", 64),
        query=layers("attention/wq", 64, 4, 16),
        key=layers("attention/wk", 64, 4, 16),
        value=layers("attention/wv", 64, 4, 16),
        output=layers("attention/wo", 4, 16, 64),
        ffn_norm=layers("ffn_norm", 64),
        gate=layers("feed_forward/w1", 64, 160),
        up=layers("feed_forward/w3", 64, 160),
        down=layers("feed_forward/w2", 160, 64),
    )


def parted(params: Transformer) -> dict[str, np.ndarray]:
    """The inverse: our parameters under LWM's names."""
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
