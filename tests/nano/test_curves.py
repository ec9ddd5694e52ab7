import json

from lwm.nano.curves import KEPT_ROWS, draw, keep


def test_every_evaluation_is_kept_and_training_is_thinned(tmp_path):
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 2001)]
    rows += [
        {"step": step, "held_out_loss": 0.123456789, "held_out_text_accuracy": 0.5} for step in range(100, 2001, 100)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = keep(tmp_path / "metrics.jsonl", tmp_path / "thinned.jsonl")
    assert [json.loads(line)["step"] for line in (tmp_path / "thinned.jsonl").read_text().splitlines()] == [
        row["step"] for row in kept
    ]
    assert sum("held_out_loss" in row for row in kept) == 20
    assert KEPT_ROWS / 2 < sum("loss" in row for row in kept) <= 2 * KEPT_ROWS
    assert kept[-1]["step"] == 2000 and any(row.get("loss") == 1 / 2000 for row in kept)
    draw([("first", 3072, kept), ("second", 4096, kept)], tmp_path / "curve.png", "some stages")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
