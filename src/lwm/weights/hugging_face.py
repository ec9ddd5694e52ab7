"""Llama-family weights as Hugging Face `transformers` names and lays them out, turned into our parameters.

Its matrices are (out, in) and one tensor a layer; ours are (in, out) and stacked over layers. Its rotary positions
turn features i and i + h/2 together; ours turn 2i and 2i + 1, so the features of queries and keys are reordered.
"""

from collections.abc import Mapping

import numpy as np

from lwm.core.errors import UserError
from lwm.model.config import ModelConfig
from lwm.model.layers import Layer
from lwm.model.transformer import Transformer

#: buffers that old versions of `transformers` stored beside the weights
_IGNORED = ("rotary_emb.inv_freq",)


def from_hugging_face(state: Mapping[str, np.ndarray], config: ModelConfig) -> Transformer:
    """The state dictionary of a `LlamaForCausalLM` as parameters on the host, in the dtype it has.

    Raises:
        UserError: a tensor is missing, unknown (a bias, say) or of another shape than `config` says.
    """
    V, D, F = config.vocab.size, config.hidden_size, config.intermediate_size
    H, K, h = config.num_heads, config.num_kv_heads, config.head_width
    used: set[str] = set()

    def tensor(name: str, *shape: int) -> np.ndarray:
        if name not in state:
            raise UserError(f"the Hugging Face model has no tensor {name}")
        if state[name].shape != shape:
            raise UserError(f"the Hugging Face tensor {name} has shape {state[name].shape} and should have {shape}")
        used.add(name)
        return state[name]

    def layers(name: str, *shape: int) -> np.ndarray:
        return np.stack([tensor(f"model.layers.{i}.{name}.weight", *shape) for i in range(config.num_layers)])

    def matrix(name: str, fan_in: int, fan_out: int) -> np.ndarray:
        return layers(name, fan_out, fan_in).swapaxes(1, 2)

    params = Transformer(
        embedding=tensor("model.embed_tokens.weight", V, D),
        layers=Layer(
            attention_norm=layers("input_layernorm", D),
            query=interleave(matrix("self_attn.q_proj", D, H * h).reshape(-1, D, H, h)),
            key=interleave(matrix("self_attn.k_proj", D, K * h).reshape(-1, D, K, h)),
            value=matrix("self_attn.v_proj", D, K * h).reshape(-1, D, K, h),
            output=matrix("self_attn.o_proj", H * h, D).reshape(-1, H, h, D),
            ffn_norm=layers("post_attention_layernorm", D),
            gate=matrix("mlp.gate_proj", D, F),
            up=matrix("mlp.up_proj", D, F),
            down=matrix("mlp.down_proj", F, D),
        ),
        final_norm=tensor("model.norm.weight", D),
        head=None if config.tie_word_embeddings else tensor("lm_head.weight", V, D).T,
    )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    unknown = sorted(name for name in state.keys() - used - tied if not name.endswith(_IGNORED))
    if unknown:
        raise UserError(
            f"the Hugging Face model has tensors that this model has no place for: {', '.join(unknown[:3])}"
        )
    return params


def interleave(heads: np.ndarray) -> np.ndarray:
    """Reorder the last axis from halves (x0 .. | y0 ..) to pairs (x0 y0 x1 y1 ..)."""
    halves = heads.reshape(*heads.shape[:-1], 2, -1)
    return halves.swapaxes(-1, -2).reshape(heads.shape)
