"""Whatever the file: upright squares on white, and times exact to the frame."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lwm.core.errors import UserError
from lwm.data.media import MAX_FRAMES, Choice, read_frames

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write_video(path: Path, num_frames: int = 20, rate: int = 10, pts: list[int] | None = None) -> Path:
    """Grey frames, each a step brighter than the one before, so that a picture tells its number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(num_frames):
            grey = np.full((48, 64, 3), 10 * number + 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts = pts[number] if pts else number
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(pixels: np.ndarray) -> list[int]:
    return np.rint((pixels.mean(axis=(1, 2, 3)) - 20) / 10).astype(int).tolist()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), list(range(20))),
        (Choice(num_frames=4), [0, 5, 10, 15]),
        (Choice(num_frames=100), list(range(20))),
        (Choice(num_frames=1), [0]),
        (Choice(frames_per_second=2.0), [0, 5, 10, 15]),
        (Choice(frames_per_second=20.0), [number for number in range(20) for _ in range(2)]),
        (Choice(frames_per_second=0.1), [0]),
    ],
)
def test_a_video_by_number_and_by_rate(choice, expected, tmp_path):
    frames = read_frames(write_video(tmp_path / "film.mp4"), 16, choice)
    assert numbers(frames.pixels) == expected
    np.testing.assert_allclose(frames.times, [number / 10 for number in expected], atol=1e-6)
    assert frames.pixels.shape[1:] == (16, 16, 3) and frames.pixels.dtype == np.uint8


def test_a_video_whose_frames_are_shown_for_different_times(tmp_path):
    path = write_video(tmp_path / "film.mkv", num_frames=4, pts=[0, 1, 2, 10])
    assert read_frames(path, 16).times.tolist() == pytest.approx([0, 0.1, 0.2, 1.0], abs=2e-3)
    frames = read_frames(path, 16, Choice(frames_per_second=5.0))
    assert numbers(frames.pixels) == [0, 2, 2, 2, 2, 3]


def test_a_picture_of_any_form(tmp_path):
    alpha = Image.new("RGBA", (8, 8), (*RED, 0))
    alpha.paste((*BLUE, 255), (0, 0, 8, 4))
    grey, deep = Image.new("L", (6, 9), 100), Image.fromarray(np.full((9, 6), 100 * 257, np.uint16))
    for name, picture, top, bottom in (
        ("alpha.png", alpha, BLUE, (255,) * 3),
        ("alpha.webp", alpha, BLUE, (255,) * 3),
        ("grey.png", grey, (100,) * 3, (100,) * 3),
        ("deep.png", deep, (100,) * 3, (100,) * 3),
        ("palette.gif", alpha.convert("RGB").quantize(4), BLUE, RED),
        ("cmyk.jpg", Image.new("RGB", (30, 40), BLUE).convert("CMYK"), BLUE, BLUE),
    ):
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        (pixels,) = read_frames(tmp_path / name, 16).pixels
        assert np.abs(pixels[1, 8].astype(int) - top).max() <= 3, name
        assert np.abs(pixels[-2, 8].astype(int) - bottom).max() <= 3, name


def test_a_picture_is_turned_upright_and_its_middle_kept(tmp_path):
    wide = Image.new("RGB", (40, 20), GREEN)
    wide.paste(RED, (0, 0, 10, 20))
    wide.paste(BLUE, (30, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    assert (read_frames(tmp_path / "wide.png", 20).pixels[0] == GREEN).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (8, 8), RED).save(tmp_path / "turned.png")
    square = Image.new("RGB", (8, 8), RED)
    square.paste(GREEN, (0, 0, 4, 8))
    square.save(tmp_path / "turned.png", exif=exif)
    (pixels,) = read_frames(tmp_path / "turned.png", 8).pixels
    assert (pixels[1, 4] == GREEN).all() and (pixels[-2, 4] == RED).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_keeps_its_times(suffix, tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[200, 300, 500], **options)
    frames = read_frames(path, 8)
    np.testing.assert_allclose(frames.times, [0, 0.2, 0.5])
    assert [tuple(picture[4, 4]) for picture in frames.pixels] == [RED, GREEN, BLUE]
    by_rate = read_frames(path, 8, Choice(frames_per_second=4.0))
    assert [tuple(picture[4, 4]) for picture in by_rate.pixels] == [RED, GREEN, BLUE, BLUE]


def test_a_turned_video_is_upright(tmp_path):
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    with av.open(str(plain), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[:32] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    head, track = plain.read_bytes().split(b"tkhd")
    assert straight in track
    turned.write_bytes(head + b"tkhd" + track.replace(straight, quarter, 1))
    (upright,), (before,) = read_frames(turned, 16).pixels, read_frames(plain, 16).pixels
    assert before[2].mean() > 200 and before[-3].mean() < 50
    assert upright[:, -3].mean() > 200 and upright[:, 2].mean() < 50, "a quarter turn clockwise"


def test_what_is_neither_picture_nor_video_says_so(tmp_path):
    for name, content in (("text.mp4", b"not a film"), ("empty.png", b""), ("noise.mkv", bytes(range(256)) * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is neither a picture nor a video"):
            read_frames(tmp_path / name, 16)
    with pytest.raises(UserError, match="no picture or video at"):
        read_frames(tmp_path / "missing.mp4", 16)
    with pytest.raises(UserError, match="no picture or video at"):
        read_frames(tmp_path / ("x" * 300), 16)  # the file system itself refuses the name


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "h264"])
def test_films_of_any_container(suffix, tmp_path):
    path = tmp_path / f"film.{suffix}"
    codecs = {"webm": "libvpx", "h264": "libx264", "flv": "flv", "ts": "mpeg2video"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codecs.get(suffix, "mpeg4"), rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in range(20, 180, 20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), "rgb24")))
        container.mux(stream.encode())
    assert len(read_frames(path, 16).times) == 8


def test_a_title_that_is_not_unicode_stops_nothing(tmp_path):
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf__"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    assert path.read_bytes().count(b"caf__") == 1
    path.write_bytes(path.read_bytes().replace(b"caf__", b"caf\xe9 "))
    assert len(read_frames(path, 16).times) == 1


@pytest.mark.parametrize("name", ["list.mp4", "list.ffconcat", "notes.nfo", "notes.asc", "list.m3u8"])
def test_playlists_and_texts_open_nothing(name, tmp_path):
    write_video(tmp_path / "film.mkv")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfilm.mkv\n#EXT-X-ENDLIST\n"
    content = {"list": "ffconcat version 1.0\nfile film.mkv\n", "notes": "made by hand\n" * 20}[name[:-4].split(".")[0]]
    (tmp_path / name).write_text(playlist if name.endswith("m3u8") else content)
    with pytest.raises(UserError, match=f"{name} is neither a picture nor a video"):
        read_frames(tmp_path / name, 16)


def test_odd_texts_and_tags_in_a_picture_are_passed_over(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("duration", "5 s")
    Image.new("RGB", (8, 8), RED).save(tmp_path / "text.png", pnginfo=texts)
    for name, options in (("tag.png", {}), ("tag.webp", {"lossless": True})):
        Image.new("RGB", (8, 8), RED).save(tmp_path / name, exif=b"Exif\0\0garbage", **options)
    for name in ("text.png", "tag.png", "tag.webp"):
        frames = read_frames(tmp_path / name, 8)
        assert (frames.pixels[0] == RED).all() and frames.times.tolist() == [0], name


def test_a_picture_that_opens_and_cannot_be_shown_says_so(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("transparency", "none")
    Image.new("RGB", (8, 8), RED).save(tmp_path / "odd.png", pnginfo=texts)
    with pytest.raises(UserError, match=r"odd\.png is broken, and its frame at 0\.00 s cannot be shown"):
        read_frames(tmp_path / "odd.png", 8)


@pytest.mark.parametrize("rate", [1e5, 1e10, 1e308])
def test_a_rate_of_too_many_frames_is_refused_before_they_are_listed(rate, tmp_path):
    with pytest.raises(UserError, match=rf"film\.mp4 lasts 2\.0 s, .* more than {MAX_FRAMES:,} frames"):
        read_frames(write_video(tmp_path / "film.mp4"), 16, Choice(frames_per_second=rate))


def test_the_content_tells_what_a_file_is(tmp_path):
    write_video(tmp_path / "film.mp4").rename(tmp_path / "film.jpg")
    assert len(read_frames(tmp_path / "film.jpg", 16).times) == 20


def test_a_file_cut_short_says_at_which_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    for path, why in (
        (tmp_path / "cut.png", "is broken at frame 1 of 1: image file is truncated"),
        (write_video(tmp_path / "film.mp4"), "is neither a picture nor a video"),
        (write_video(tmp_path / "film.mkv"), r"is cut short: it ends after frame \d+ at 1\.\d\d of 2\.00 s"),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: int(0.6 * len(content))])
        with pytest.raises(UserError, match=f"{path.name} {why}"):
            read_frames(path, 16)


def test_damaged_data_says_at_which_frame(tmp_path):
    film = write_video(tmp_path / "film.mp4")
    content = bytearray(film.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    film.write_bytes(content)
    with pytest.raises(UserError, match=r"is broken at frame \d+ of 20: its data is damaged"):
        read_frames(film, 16)


def test_an_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UserError, match="100,000 x 100,000 pixels, more than"):
        read_frames(tmp_path / "bomb.png", 16)


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"frames_per_second": 0.0}, {"num_frames": 1, "frames_per_second": 1.0}]
)
def test_choices_that_mean_nothing(wrong):
    with pytest.raises(UserError, match=r"ask for|not by both"):
        Choice(**wrong)


def test_pages_are_no_animation(tmp_path):
    pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    frames = read_frames(tmp_path / "pages.tiff", 8)
    assert len(frames.times) == 1 and tuple(frames.pixels[0, 4, 4]) == RED


def test_a_format_that_starts_programs_is_not_opened(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(UserError, match=r"picture\.png is"):
        read_frames(tmp_path / "picture.png", 8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the library, about damaged tags
@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "jpg", "png"])
def test_pictures_cut_anywhere_end_in_a_sentence(suffix, tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    whole = tmp_path / f"whole.{suffix}"
    pictures[0].save(whole, **({} if suffix == "jpg" else {"save_all": True, "append_images": pictures[1:]}))
    content = whole.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[:length])
        try:
            read_frames(cut, 8)
        except UserError as error:
            assert "cut" in str(error)


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    write_video(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_frames("12:30.mp4", 16).times) == 20
