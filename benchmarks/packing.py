"""How fast, and how full, is the packer, next to grain's first-fit packing and a loop over Python lists?

    python benchmarks/packing.py [--save]

Documents of 1 to 4096 tokens into rows of 8192, tokenized already. Each rival makes tokens, targets, loss weights,
segments and positions. Speed counts tokens that are not padding; figures are medians over rounds, run in turn.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import grain
import numpy as np
from saving import HARDWARE, save

from lwm.data.examples import Example
from lwm.data.loader import Loader

SEQ_LEN = 8192
LONGEST = 4096
#: yields the segment ids of row after row
Rival = Callable[[list[Example]], Iterator[np.ndarray]]


def ours(lookahead: int) -> Rival:
    """The loader in one thread: cutting, weighting, placing and filling."""

    def rows(documents: list[Example]) -> Iterator[np.ndarray]:
        loader = Loader(documents, batch_size=1, seq_len=SEQ_LEN, lookahead=lookahead, prefetch=0)
        return (batch.segment_ids for batch, _ in loader)

    return rows


def first_fit(num_bins: int) -> Rival:
    """Grain's packing into the first of a number of open rows that has room; weights as they come."""

    def rows(documents: list[Example]) -> Iterator[np.ndarray]:
        dataset = grain.MapDataset.source(documents).shuffle(0).repeat().map(_features)
        packed = grain.experimental.FirstFitPackIterDataset(
            dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)),
            length_struct=dict.fromkeys(("tokens", "targets", "loss_weights"), SEQ_LEN),
            num_packing_bins=num_bins,
        )
        return (row["tokens_segment_ids"] for row in packed)

    return rows


def _features(document: Example) -> dict[str, np.ndarray]:
    tokens, weights = document.tokens, document.loss_weights
    return {"tokens": tokens[:-1], "targets": tokens[1:], "loss_weights": weights[1:] / weights[1:].sum()}


def list_loop(documents: list[Example]) -> Iterator[np.ndarray]:
    """A row is emitted when the next document does not fit; everything is appended to Python lists."""
    row: list[list] = [[], [], [], [], []]
    segment = 0
    for document in itertools.cycle(documents):
        tokens, weights = document.tokens.tolist(), document.loss_weights.tolist()
        length, total = len(tokens) - 1, sum(weights[1:])
        if len(row[0]) + length > SEQ_LEN:
            padding = [0] * (SEQ_LEN - len(row[0]))
            yield [np.array(values + padding) for values in row][3]
            row, segment = [[], [], [], [], []], 0
        segment += 1
        row[0] += tokens[:-1]
        row[1] += tokens[1:]
        row[2] += [weight / total for weight in weights[1:]]
        row[3] += [segment] * length
        row[4] += range(length)


def measure(rival: Rival, documents: list[Example], num_rows: int) -> tuple[float, float]:
    """Tokens a second and the share of tokens that are not padding, after a first row that pays for the start."""
    rows = rival(documents)
    next(rows)
    start = time.perf_counter()
    used = sum(int(np.count_nonzero(row)) for row in itertools.islice(rows, num_rows))
    return used / (time.perf_counter() - start), used / (num_rows * SEQ_LEN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20000)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/packing_<hardware>_<date>.md")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    documents = [
        Example(rng.integers(0, 32000, pairs + 1, np.int32), np.ones(pairs + 1, np.float32), "")
        for pairs in rng.integers(1, LONGEST + 1, options.documents)
    ]
    rivals: dict[str, Rival] = {f"lwm, lookahead {rows}": ours(rows) for rows in (16, 32, 8)}
    rivals |= {f"grain first-fit, {bins} bins": first_fit(bins) for bins in (32, 128)}
    rivals["list loop"] = list_loop
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for _ in range(options.rounds):
        for name, rival in rivals.items():
            found[name].append(measure(rival, documents, options.rows))
    lines = [
        f"Documents of 1..{LONGEST} tokens into rows of {SEQ_LEN}, {options.rows} rows, grain {grain.__version__}, "
        f"{HARDWARE}, medians of {options.rounds}.",
        "",
        "| who | Mtok/s | full | ours / theirs in speed |",
        "|---|---|---|---|",
    ]
    speeds = {name: statistics.median(speed for speed, _ in runs) for name, runs in found.items()}
    default = next(iter(speeds.values()))
    for name, speed in speeds.items():
        full = statistics.median(full for _, full in found[name])
        lines.append(f"| {name} | {speed / 1e6:.1f} | {full:.1%} | {default / speed:.2f} |")
    print("\n".join(lines))
    if options.save:
        save("packing", lines)


if __name__ == "__main__":
    main()
