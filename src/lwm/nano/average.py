"""The mean of models of one descent: what one forgot on its way to something else, the mean mostly knows, and that too.

Weights that were trained on from one another lie in one valley of the loss, and so does what is between them (Wortsman
et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from collections.abc import Sequence
from pathlib import Path

import jax

from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.tokenizer import tokenizer_file
from lwm.weights.load import load_model
from lwm.weights.store import save_model


def write_mean(models: Sequence[Path], directory: Path) -> None:
    """Save the mean of models of the same shape, with the tokenizer and the codec of the last one."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    loaded = [load_model(model, mesh) for model in models]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(model.params for model in loaded))
    save_model(directory, loaded[-1].config, mean, tokenizer_file(models[-1]), codec=models[-1])
