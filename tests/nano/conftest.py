import pytest

from lwm.data.tokenizer import Tokenizer, load_tokenizer
from lwm.nano.train_tokenizer import TOKENIZER_FILE


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(TOKENIZER_FILE)
