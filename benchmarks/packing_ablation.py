"""What masked packing and its weights are worth: the paper's ablation (LWM, section 4.2) at the size of the nano model.

    python benchmarks/packing_ablation.py [--steps 600] [--seeds 3] [--save]

It wants what `python -m lwm.nano.recipe` leaves in runs/ on its way: nano-words, nano-codec, world and nano-single.

A model that has learned to tell pictures of one shape (`lwm train nano-single`) learns to answer questions about any
pictures and clips, from the same records:

    naive     what fits in a row is one long document: each record sees those before it
    tokens    masked packing, and every learned token weighs the same
    examples  masked packing, and every record weighs the same: what padded rows would give

Each is then asked about held-out pictures and clips, one a prompt; an answer is right if it is the word.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from saving import HARDWARE, save

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.data.examples import Example, ExampleSource, RecordData, nth
from lwm.data.mixture import MixedData
from lwm.data.tokenizer import Tokenizer
from lwm.evals.world_tasks import Asking, Subject
from lwm.infer.draw_sampling import DrawSampling
from lwm.infer.engine import Engine
from lwm.nano import vision
from lwm.nano.world_records import LOOK
from lwm.train.loop import train
from lwm.train.run import Run
from lwm.weights.codec_store import load_codec
from lwm.weights.load import load_model
from lwm.world.film import CLIP

SEQ_LEN = 2048
#: records that a row's number of records is estimated from
PROBED = 200
VARIANTS = ("naive", "tokens", "examples")


@dataclass(frozen=True)
class Joined:
    """As many records as fill a row, as one document."""

    data: MixedData

    def open(self, tokenizer: Tokenizer, vocab: Vocab) -> "JoinedExamples":
        return JoinedExamples(self.data.open(tokenizer, vocab))


class JoinedExamples:
    """Documents of `SEQ_LEN + 1` tokens, made of neighbouring records."""

    def __init__(self, source: ExampleSource) -> None:
        self._source = source
        lengths = [len(example.tokens) for place in range(PROBED) if (example := source[place]) is not None]
        self._records = int(SEQ_LEN / np.quantile(lengths, 0.1)) + 1

    def __len__(self) -> int:
        return len(self._source) // self._records

    def __getitem__(self, index: int) -> Example:
        some = [nth(self._source, index * self._records + place) for place in range(self._records)]
        parts = [example for example in some if example is not None]
        tokens = np.concatenate([part.tokens for part in parts])[: SEQ_LEN + 1]
        weights = np.concatenate([part.loss_weights for part in parts])[: SEQ_LEN + 1]
        return Example(tokens, weights, parts[0].record_id)


def run_of(variant: str, seed: int, steps: int, out: Path) -> Run:
    """One training."""
    files = [str(vision.RECORDS / f"{name}.parquet") for name in ("pictures", "clips_4", "clips_8")]
    data: Any = MixedData(tuple(RecordData(file, fields=LOOK, separator="") for file in files), (0.5, 0.25, 0.25))
    run = vision.nano_clips()
    return replace(
        run,
        name=variant,
        data=Joined(data) if variant == "naive" else data,
        held_out=None,
        weighting="examples" if variant == "examples" else "tokens",
        steps=steps,
        batch_size=1,
        seq_len=SEQ_LEN,
        optimizer=replace(run.optimizer, warmup_steps=steps // 20),
        seed=seed,
        out=out,
        log_every=steps,
        checkpoint_every=steps,
    )


def accuracy(directory: Path, questions: int) -> float:
    """Right answers about held-out pictures and clips."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    model = load_model(directory, mesh)
    subject = Subject(model, Engine.of(model), load_codec(directory, mesh), DrawSampling())
    rows = [
        row
        for task in (Asking("pictures", questions), Asking("clips", questions, CLIP))
        for first in range(0, questions, task.at_once)
        for row in task.run(range(first, min(first + task.at_once, questions)), subject)
    ]
    return statistics.mean(row["correct"] for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init-from", default="runs/nano-single", help="what all begin from")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100, help="about pictures, and as many about clips")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    lines = [
        f"Right answers about held-out pictures and clips after {options.steps} steps of {SEQ_LEN:,} tokens, "
        f"{HARDWARE}.",
        "",
        "| packing | each seed | mean |",
        "|---|---|---|",
    ]
    for variant in VARIANTS:
        found = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as scratch:
                run = replace(run_of(variant, seed, options.steps, Path(scratch) / "run"), init_from=options.init_from)
                train(run)
                found.append(accuracy(run.out / "model", options.questions))
        each = ", ".join(f"{100 * share:.1f}%" for share in found)
        lines.append(f"| {variant} | {each} | {100 * statistics.mean(found):.1f}% |")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.save:
        save("packing_ablation", lines)


if __name__ == "__main__":
    main()
