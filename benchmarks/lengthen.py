"""How far a short fine-tuning carries a real model beyond the context it was trained for.

    lwm convert smollm2 published
    python benchmarks/lengthen.py write --model published --records needles.jsonl --haystack held_out.txt
    lwm train fine-tune-lora --init-from published --model.rope-theta 5e5 --model.max-context 32768 \\
        --data.path needles.jsonl --data.fields '[prompt],answer' --data.no-add-bos --data.span 32768 --seq-len 2048 \\
        --batch-size 1 --steps 40 --optimizer.learning-rate 5e-4 --compute.remat none --out runs/longer
    lwm eval needle --model published --haystack held_out.txt --context-lengths 1k,2k,4k,8k,12k --depths 5 --rounds 1 \\
        --out needles/published
    python benchmarks/lengthen.py table needles/* --save

The same is asked of `raised`, a copy of `published` whose config.json says a rope_theta of 500000.0, and of
`runs/longer/model`. Rows of 2,048 tokens whose positions skip teach distances up to 32,768. The needles of the records
lie in other texts than those of the test, and are worded by the model's own chat template.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from saving import HARDWARE
from saving import save as save_table
from tyro.conf import Positional, subcommand

from lwm.core.mesh import MeshShape, make_mesh
from lwm.evals.haystack import Haystack
from lwm.evals.trial import Cell, build_trial
from lwm.infer.chat_format import chat_format
from lwm.nano.corpus import held_out_documents, training_documents
from lwm.weights.load import load_model

ANSWER = "The special magic {city} number is: {number}."
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Write:
    """Write the records: a number hidden in a stretch of the library's documentation and sources."""

    model: str
    records: Path
    #: where the text goes that the records have nothing of
    haystack: Path
    count: int = 400
    #: tokens of a record
    length: int = 2000
    seed: int = 1


@dataclass(frozen=True)
class Table:
    """What was found by the models, by length."""

    #: directories that `lwm eval needle` wrote
    results: Positional[tuple[Path, ...]]
    save: bool = False


def write(options: Write) -> None:
    model = load_model(options.model, make_mesh(MeshShape(), jax.devices()[:1]))
    chat = chat_format(model.tokenizer, model.config.vocab)
    text = "\n".join(document.text for document in training_documents())
    haystack = Haystack.of(text, model.tokenizer.encode)
    rng, began = np.random.default_rng(options.seed), time.perf_counter()
    with open(options.records, "w", encoding="utf-8") as file:
        for number in range(options.count):
            cell = Cell(options.length, int(rng.integers(101)), number)
            trial = build_trial(cell, haystack, chat, seed=options.seed, answer_tokens=ANSWER_TOKENS)
            answer = ANSWER.format(city=trial.cities[0], number=trial.numbers[0])
            file.write(json.dumps({"prompt": trial.text, "answer": answer}) + "\n")
    options.haystack.write_text("\n".join(document.text for document in held_out_documents()), encoding="utf-8")
    print(f"{options.count} records are in {options.records} ({time.perf_counter() - began:.0f} s)")


def table(options: Table) -> None:
    found: dict[str, dict[int, list[bool]]] = {}
    for directory in options.results:
        rows = found.setdefault(directory.name, {})
        for row in json.loads((directory / "results.json").read_text(encoding="utf-8")):
            rows.setdefault(row["context_length"], []).append(bool(row["correct"]))
    lengths = sorted({length for rows in found.values() for length in rows})
    lines = [f"Numbers found, of those hidden in text that no fine-tuning showed, {HARDWARE}.", ""]
    lines.append("| | " + " | ".join(f"{length:,}" for length in lengths) + " |")
    lines.append("|---" * (len(lengths) + 1) + "|")
    for name, rows in found.items():
        cells = [f"{sum(rows[length])} of {len(rows[length])}" if length in rows else "" for length in lengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if options.save:
        save_table("lengthen", lines)


if __name__ == "__main__":
    parsed = tyro.cli(Annotated[Write, subcommand("write")] | Annotated[Table, subcommand("table")])  # type: ignore[arg-type]
    if isinstance(parsed, Write):
        write(parsed)
    else:
        table(parsed)
