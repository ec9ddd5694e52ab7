import hashlib

from lwm.nano.corpus import HELD_OUT_MODULES, HELD_OUT_TOPICS, held_out_documents, training_documents


def test_the_split_has_no_name_in_common_and_is_the_same_each_time():
    training, held_out = training_documents(), held_out_documents()
    assert not {document.name for document in training} & {document.name for document in held_out}
    assert (training, held_out) == (training_documents(), held_out_documents())


def test_there_is_enough_of_both():
    held_out = held_out_documents()
    assert len(held_out) == len(HELD_OUT_MODULES) + len(HELD_OUT_TOPICS)
    assert sum(len(document.text) for document in held_out) > 1_000_000  # more than 256K tokens
    assert sum(len(document.text) for document in training_documents()) > 4_000_000


def test_held_out_passages_do_not_occur_in_training():
    def passages(text: str, step: int) -> list[bytes]:
        return [hashlib.md5(text[i : i + 80].encode()).digest() for i in range(0, len(text) - 80, step)]

    trained = {passage for document in training_documents()[::4] for passage in passages(document.text, 1)}
    for document in held_out_documents():
        found = [passage in trained for passage in passages(document.text, 80)]
        assert sum(found) <= 0.01 * len(found), document.name
