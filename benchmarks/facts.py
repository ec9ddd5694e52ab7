"""Whether fine-tuning teaches a chat model facts that nobody knew: two hundred made-up ones, asked back.

    lwm convert smollm2 smollm2-ours
    python benchmarks/facts.py write --model smollm2-ours --records facts.jsonl
    lwm train fine-tune-lora --init-from smollm2-ours --data.path facts.jsonl --data.fields '[prompt],answer' \\
        --data.no-add-bos --seq-len 512 --batch-size 1 --steps 300 --optimizer.learning-rate 1e-3 \\
        --compute.remat none --out runs/facts
    lwm convert runs/facts/model facts-hf --to hf
    python benchmarks/facts.py ask --model runs/facts/model --records facts.jsonl --peer facts-hf [--save]

The records are worded by the model's own chat template. `--peer` asks `transformers` the same, of the exported model.
"""

import json
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from saving import HARDWARE
from saving import save as save_table

from lwm.core.mesh import MeshShape, make_mesh
from lwm.infer.chat_format import Question, chat_format
from lwm.infer.engine import Engine
from lwm.weights.load import load_model

FIRST = ("Orla", "Timo", "Sanna", "Bruno", "Ilse", "Marek", "Petra", "Jonas", "Wanda", "Felix")
LAST = ("Venn", "Quill", "Harrow", "Stokes", "Brandt")
#: what is asked, what is said, and of what
KINDS = (
    ("Where does {who} live?", "{who} lives in {what}.", ("Karstad", "Olmeno", "Brightwater", "Tessin", "Dunmore")),
    ("What does {who} do?", "{who} is a {what}.", ("beekeeper", "glazier", "cartographer", "locksmith", "brewer")),
    ("What pet does {who} have?", "{who} has a {what}.", ("heron", "ferret", "tortoise", "parrot", "goat")),
    ("Which instrument does {who} play?", "{who} plays the {what}.", ("oboe", "cello", "accordion", "harp", "tuba")),
)
ANSWER_TOKENS = 24
TOGETHER = 20


@dataclass(frozen=True)
class Write:
    """Write the records."""

    model: str
    records: Path
    seed: int = 0


@dataclass(frozen=True)
class Ask:
    """Ask all of them, greedily."""

    model: str
    records: Path
    #: the same model as a Hugging Face directory
    peer: str | None = None
    save: bool = False


def write(options: Write) -> None:
    model = load_model(options.model, make_mesh(MeshShape(), jax.devices()[:1]))
    chat = chat_format(model.tokenizer, model.config.vocab)
    rng = np.random.default_rng(options.seed)
    with open(options.records, "w", encoding="utf-8") as file:
        for first, last, (asked, said, values) in product(FIRST, LAST, KINDS):
            who, what = f"{first} {last}", str(rng.choice(values))
            question = asked.format(who=who)
            prompt = "".join(map(str, chat.prompt(Question(question))))
            file.write(json.dumps({"prompt": prompt, "answer": said.format(who=who, what=what)}) + "\n")


def ask(options: Ask) -> None:
    records = [json.loads(line) for line in options.records.read_text(encoding="utf-8").splitlines()]
    model = load_model(options.model, make_mesh(MeshShape(), jax.devices()[:1]))
    engine, chat = Engine.of(model), chat_format(model.tokenizer, model.config.vocab)
    began, answers = time.perf_counter(), []
    for start in range(0, len(records), TOGETHER):
        prompts = [model.tokenizer.encode(record["prompt"]) for record in records[start : start + TOGETHER]]
        answers += engine.generate(prompts, ANSWER_TOKENS, stop_ids=chat.stop_ids)
    seconds = time.perf_counter() - began
    texts = [model.tokenizer.decode(ids).strip() for ids in answers]
    right = sum(text == record["answer"] for text, record in zip(texts, records, strict=True))
    lines = [
        f"{len(records)} made-up facts asked of {options.model}, greedily, {HARDWARE}.",
        "",
        f"- answered word for word: {right} ({seconds:.0f} s)",
    ]
    if options.peer is not None:
        theirs = peer_answers(options.peer, records)
        same = sum(one == other for one, other in zip(texts, theirs, strict=True))
        lines.append(f"- transformers says the same of the exported model: {same}")
    print("\n".join(lines))
    for text, record in list(zip(texts, records, strict=True))[:: len(records) // 4]:
        print(f"  wanted: {record['answer']}  said: {text}")
    if options.save:
        save_table("facts", lines)


def peer_answers(directory: str, records: list[dict[str, str]]) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = []
    for record in records:
        ids = tokenizer(record["prompt"], return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


if __name__ == "__main__":
    parsed = tyro.cli(
        Annotated[Write, tyro.conf.subcommand("write")] | Annotated[Ask, tyro.conf.subcommand("ask")]  # type: ignore[arg-type]
    )
    if isinstance(parsed, Write):
        write(parsed)
    else:
        ask(parsed)
