"""A model is known by what is in its files, whatever form it has."""

import json

from lwm.evals.fingerprint import fingerprint


def test_a_replaced_tensor_a_changed_config_and_another_tokenizer_are_seen(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 3_000_000)
    seen = {fingerprint(tmp_path)}
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 2_999_999 + b"\1")
    seen.add(fingerprint(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": 1}))
    seen.add(fingerprint(tmp_path))
    (tmp_path / "notes.txt").write_text("no part of it")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 3


def test_a_model_that_is_a_file_counts_with_what_says_what_it_is(tmp_path):
    stream = tmp_path / "params"
    stream.write_bytes(b"one")
    seen = [fingerprint(stream), fingerprint(tmp_path)]
    stream.write_bytes(b"two")
    seen += [fingerprint(stream), fingerprint(tmp_path)]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    seen.append(fingerprint(stream))
    assert len(set(seen)) == 3
    (tmp_path / "other.json").write_text("[]")
    assert fingerprint(stream) == seen[-1]
