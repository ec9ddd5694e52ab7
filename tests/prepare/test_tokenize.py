"""Media become records in a fixed order, once each; a kill loses nothing and changes no byte; and back again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.media import read_frames
from lwm.data.media_out import save_frames
from lwm.data.sources import open_records
from lwm.prepare import tokenize as tokenizing
from lwm.prepare.detokenize import DetokenizeConfig, detokenize
from lwm.prepare.items import list_items
from lwm.prepare.tokenize import TokenizeConfig, tokenize
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Levels
from lwm.weights.codec_store import save_codec

CODEC = PatchCodecConfig(encoder_width=16, decoder_width=8, fine_widths=(8, 8), quantizer=Levels((8, 8, 8)))


@pytest.fixture(scope="module")
def codec() -> FrameCodec:
    params = declared.init(declare(CODEC), jax.random.key(0), jnp.float32)
    return FrameCodec(params, CODEC, make_mesh(MeshShape(), jax.devices()[:1]))


def noise(seed: int, num_frames: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(num_frames, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, a film, a caption, and files that are broken, empty, mislabelled or no pictures at all."""
    folder = tmp_path / "media"
    for number in range(5):
        save_frames(folder / f"{number}.png", noise(number))
    (folder / "3.txt").write_text("The third.\n")
    save_frames(folder / "clips" / "film.gif", noise(9, 70), 10.0)
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:1000])
    (folder / "empty.jpg").touch()
    (folder / "really_png.jpg").write_bytes((folder / "2.png").read_bytes())
    (folder / "notes.pdf").write_text("no picture")
    Image.new("1", (9000, 9000)).save(folder / "huge.png")
    return folder


def rows(file: Path) -> list[dict]:
    source = open_records(str(file))
    return [source[index].values for index in range(len(source))]


def test_a_folder_of_everything(folder, codec, tmp_path):
    seen: list[tuple[int, int]] = []
    config = TokenizeConfig((str(folder),), "m", tmp_path / "records.jsonl")
    done = tokenize(config, codec, lambda number, total, note: seen.append((number, total)))
    records = rows(done.out)
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", "clips/film.gif", "really_png.jpg"]
    assert [record["media"] for record in records] == names
    assert (done.num_records, done.num_frames, done.resumed) == (7, 76, 0)
    assert seen[-1] == (11, 11)
    assert {name: reason for name, reason in done.bad}.keys() == {"broken.png", "empty.jpg", "huge.png", "notes.pdf"}
    assert all(str(folder) in reason for _, reason in done.bad)
    assert records[3]["caption"] == "The third."
    for number in range(5):
        np.testing.assert_array_equal(records[number]["vision"], codec.encode(noise(number))[0])
    assert records[5]["times"] == pytest.approx([place / 10 for place in range(70)])
    assert len(records[5]["vision"]) == 70 * 16
    assert not list(tmp_path.glob(".*"))


def test_packed_codes_are_the_same_codes(folder, codec, tmp_path):
    for name in ("records.jsonl", "records.parquet"):
        tokenize(TokenizeConfig((str(folder),), "m", tmp_path / name, num_frames=8), codec)
    listed, packed = rows(tmp_path / "records.jsonl"), rows(tmp_path / "records.parquet")
    assert [record["media"] for record in listed] == [record["media"] for record in packed]
    for one, other in zip(listed, packed, strict=True):
        np.testing.assert_array_equal(one["vision"], np.frombuffer(other["vision"], "<u2"))
        assert one["times"] == other["times"]


def test_records_that_name_files_keep_their_fields(folder, codec, tmp_path):
    file = folder / "list.jsonl"
    file.write_text(json.dumps({"media": "clips/film.gif", "question": "What?"}) + "\n")
    config = TokenizeConfig((str(file),), "m", tmp_path / "out.jsonl", frames_per_second=1.0)
    tokenize(config, codec)
    (record,) = rows(tmp_path / "out.jsonl")
    assert record["question"] == "What?"
    assert record["times"] == pytest.approx([0, 1, 2, 3, 4, 5, 6])


def test_what_is_not_unicode_is_left_out_by_name(folder, codec, tmp_path):
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "1.png").read_bytes())
    listed = folder / "list.jsonl"
    half = {"media": "0.png", "caption": "\ud83d x"}
    listed.write_text(
        "".join(json.dumps(each) + "\n" for each in (half, {"media": "\ud83d.png"}, {"media": "x" * 300}))
    )
    config = TokenizeConfig((str(folder / "caf*.png"), str(folder / "0.png"), str(listed)), "m", tmp_path / "out.jsonl")
    done = tokenize(config, codec)
    assert [record["media"] for record in rows(done.out)] == ["0.png"]
    reasons = dict(done.bad)
    assert "its name is not valid Unicode" in reasons["caf\\udce9.png"]
    assert "field 'caption' is not valid Unicode" in reasons["0.png"]
    assert "its name is not valid Unicode" in reasons["\\ud83d.png"]
    assert "no picture or video at" in reasons["x" * 300]
    "".join(f"{name}{reason}" for name, reason in done.bad).encode()


def test_what_is_beside_a_file_ends_no_other(folder, codec, tmp_path):
    (folder / "0.txt").write_bytes(b"caf\xe9")
    listed = folder / "list.jsonl"
    listed.write_text('{"media": 5}\nno JSON\n{"media": "2.png", "size": 3}\n{"media": "1.png"}\n')
    done = tokenize(TokenizeConfig((str(folder / "0.png"), str(listed)), "m", tmp_path / "out.jsonl"), codec)
    assert [record["media"] for record in rows(done.out)] == ["1.png"]
    told_of = ("0.txt cannot be read", "names no file", "not JSON", "'size' is not text")
    for told, (_, reason) in zip(told_of, done.bad, strict=True):
        assert told in reason


def test_files_of_several_directories_are_told_apart(codec, tmp_path):
    for directory in ("a", "b/c"):
        save_frames(tmp_path / directory / "0.gif", noise(0))
    named = (str(tmp_path / "a" / "*.gif"), str(tmp_path / "b"), str(tmp_path / "b" / "c" / "0.gif"))
    tokenize(TokenizeConfig(named, "m", tmp_path / "out.jsonl"), codec)
    assert [record["media"] for record in rows(tmp_path / "out.jsonl")] == ["a/0.gif", "b/c/0.gif"]


def test_a_file_has_one_name_however_it_is_named(folder):
    ways = [(str(folder),), (str(folder / "*.png"),), (str(folder / "1.png"),)]
    assert [{item.name for item in list_items(way)} & {"1.png"} for way in ways] == [{"1.png"}] * 3


def test_without_one_record_nothing_is_written(folder, codec, tmp_path):
    config = TokenizeConfig((str(folder / "broken.png"),), "m", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"none of the 1 files can be used, .*; first broken\.png: .*broken at frame 1"):
        tokenize(config, codec)
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


def test_what_was_interrupted_goes_on_to_the_same_file(folder, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "GROUP_FRAMES", 2)
    straight = TokenizeConfig((str(folder),), "m", tmp_path / "straight.jsonl")
    tokenize(straight, codec)
    halves = TokenizeConfig((str(folder),), "m", tmp_path / "halves.jsonl")

    def stop(done: int, total: int, note: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(halves, codec, stop)
    (journal,) = tmp_path.glob(".halves*")
    with journal.open("ab") as file:
        file.write(b'{"record": {"media": "torn"')  # as if killed in the middle of a line
    assert not halves.out.exists()
    done = tokenize(halves, codec)
    assert done.resumed >= 4
    assert halves.out.read_bytes() == straight.out.read_bytes()
    with pytest.raises(UserError, match="already exists"):
        tokenize(halves, codec)


def test_a_journal_of_other_files_is_not_gone_on_with(folder, codec, tmp_path):
    (tmp_path / ".out.jsonl.journal").write_text('{"files": ["other.png"]}\n')
    with pytest.raises(UserError, match="another run"):
        tokenize(TokenizeConfig((str(folder),), "m", tmp_path / "out.jsonl"), codec)


@pytest.mark.parametrize(
    ("media", "out", "message"),
    [
        (("nowhere",), "out.jsonl", "no picture or video at nowhere"),
        (("*.nothing",), "out.jsonl", "no picture or video at"),
        (("x" * 300,), "out.jsonl", "no picture or video at"),
        ((".",), "out.json", "an ending out of"),
    ],
)
def test_what_cannot_be_done_is_refused(media, out, message, codec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        tokenize(TokenizeConfig(media, "m", Path(out)), codec)
    assert not list(tmp_path.iterdir())


def test_records_become_pictures_and_films_again(folder, codec, tmp_path):
    tokenize(TokenizeConfig((str(folder),), "m", tmp_path / "records.parquet"), codec)
    written = detokenize(DetokenizeConfig(str(tmp_path / "records.parquet"), "m", tmp_path / "seen"), codec)
    assert [path.name for path in written][4:] == ["000005.png", "000006.mp4", "000007.png"]
    (picture,) = read_frames(written[0], 32).pixels
    np.testing.assert_array_equal(picture, codec.decode(codec.encode(noise(0)))[0])
    film = read_frames(written[5], 32)
    assert film.times == pytest.approx([place / 10 for place in range(70)], abs=1e-3)


@pytest.mark.parametrize("times", ["[0, 1e300]", f"[0, 1{'0' * 400}]"])
def test_absurd_times_end_in_a_sentence_or_an_even_rate(times, codec, tmp_path):
    codes = codec.encode(noise(0, 2)).ravel().tolist()
    (tmp_path / "records.jsonl").write_text(f'{{"vision": {codes}, "times": {times}}}\n')
    config = DetokenizeConfig(str(tmp_path / "records.jsonl"), "m", tmp_path / "seen")
    if "e" in times:
        with pytest.raises(UserError, match=r"000001\.mp4: frame 1 would be shown for"):
            detokenize(config, codec)
    else:
        assert read_frames(detokenize(config, codec)[0], 32).times == pytest.approx([0, 0.25])


@pytest.mark.slow
def test_killed_without_warning_it_gives_the_same_file(tmp_path):
    save_codec(tmp_path / "codec", CODEC, declared.init(declare(CODEC), jax.random.key(0), jnp.float32))
    for number in range(400):
        save_frames(tmp_path / "media" / f"{number:03}.gif", noise(number, 8))

    def command(out: str) -> list[str]:
        words = ["tokenize", str(tmp_path / "media"), "--model", str(tmp_path / "codec"), "--out", str(tmp_path / out)]
        return [sys.executable, "-c", f"from lwm.cli import main; raise SystemExit(main({words!r}))"]

    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run(command("straight.jsonl"), check=True, env=environment)
    killed = subprocess.Popen(command("killed.jsonl"), env=environment)
    journal = tmp_path / ".killed.jsonl.journal"
    while killed.poll() is None and not (journal.exists() and journal.stat().st_size > 50_000):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was done before it could be killed"
    again = subprocess.run(command("killed.jsonl"), check=True, env=environment, capture_output=True, text=True)
    assert "went on behind" in again.stderr
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
