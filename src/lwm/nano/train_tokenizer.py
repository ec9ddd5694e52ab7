"""Train the nano model's tokenizer: `python -m lwm.nano.train_tokenizer` writes `nano/weights/tokenizer.json`.

Byte-level BPE of 2,048 pieces. Numbers are cut into pairs of digits from the left, and every pair is a piece: no
number is harder than another, and few say the same piece twice, after which a copy could go on in two ways. Ids 0, 1, 2
are `<pad>`, `<s>` (begin) and `</s>` (end), where Llama has them.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lwm.core.files import whole
from lwm.nano.corpus import training_documents
from lwm.nano.facts import prompts, sentences

SIZE = 2048
SPECIAL = ("<pad>", "<s>", "</s>")
TOKENIZER_FILE = Path(__file__).parent / "weights" / "tokenizer.json"
#: how often the fixed wordings count beside 7 MB of documents, so that a word of a prompt is one piece
PROMPT_WEIGHT = 1_000
SENTENCE_WEIGHT = 20
PAIR_WEIGHT = 5_000


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Learn merges from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"[0-9]{1,2}"), "isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def training_texts() -> Iterator[str]:
    """The training documents and, many times over, the fixed wordings."""
    for document in training_documents():
        yield document.text
    yield from prompts() * PROMPT_WEIGHT
    yield from sentences() * SENTENCE_WEIGHT
    yield from [f"{pair:02d}" for pair in range(100)] * PAIR_WEIGHT


def main() -> None:
    """Train and write the tokenizer."""
    TOKENIZER_FILE.parent.mkdir(exist_ok=True)
    with whole(TOKENIZER_FILE) as scratch:
        train_tokenizer(training_texts()).save(str(scratch))


if __name__ == "__main__":
    main()
