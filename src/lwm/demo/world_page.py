"""The part of the page on what the model sees and draws: pictures and videos are in the page itself."""

import base64
import io
import tempfile
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from lwm.data.media_out import save_frames
from lwm.demo.transcript import said, turn_item, verdict
from lwm.demo.world import Exhibit, FilmSeen, Found, Frames, StoryTold, WorldSeen

#: of a video, frames a second and pixels for each pixel, since players blur what they enlarge
RATE, SCALE = 4.0, 6


def world_section(seen: WorldSeen, seconds: float) -> str:
    """HTML."""
    right = sum(each.correct for each in seen.drawn)
    moved = sum(each.correct for each in seen.filmed)
    told = sum(each.correct for each in seen.told)
    return f"""
<section aria-labelledby="world">
<h2 id="world">What it sees and draws</h2>
<p>The same model reads and writes pictures, as codes among its words. They are of a small world that this package draws
itself: shapes on grounds, which move, appear, vanish and change. None of these scenes was in its training, and whether
a drawing shows what was asked for is read off the pixels by a program. All of this took {seconds:.0f} s.</p>
<h3>Drawn from words: {right} of {len(seen.drawn)} as asked</h3>
<ul class="gallery">{"".join(_drawn(each) for each in seen.drawn)}</ul>
<h3>Filmed from words: {moved} of {len(seen.filmed)} go where they should</h3>
<ul class="gallery wide">{"".join(_filmed(each) for each in seen.filmed)}</ul>
<h3>Told from pictures and clips: {told} of {len(seen.told)} wholly right</h3>
<ul class="gallery">{"".join(_told(each) for each in seen.told)}</ul>
<h3>A story, in words and pictures</h3>
{_story(seen.story)}
<h3>One frame of {seen.film.num_frames:,}</h3>
{_film(seen.film)}
</section>"""


def _drawn(each: Exhibit) -> str:
    return f"<li>{_picture(each.frames[0], each.words)}<p>{escape(each.words)}</p>{verdict(each.correct)}</li>"


def _filmed(each: Exhibit) -> str:
    return f"<li>{_video(each.frames, each.words)}<p>{escape(each.words)}</p>{verdict(each.correct)}</li>"


def _told(each: Exhibit) -> str:
    shown = _picture(each.frames[0], "what it was shown") if len(each.frames) == 1 else _video(each.frames, "a clip")
    return f"<li>{shown}<p>“{said(each.words)}”</p>{verdict(each.correct)}</li>"


def _story(story: StoryTold) -> str:
    pieces = [
        f"<p>{escape(piece)}</p>" if isinstance(piece, str) else _picture(piece[0], "its picture")
        for piece in story.pieces
    ]
    pictures = sum(not isinstance(piece, str) for piece in story.pieces)
    return (
        f"<p>Asked: <code>{escape(story.asked)}</code> {story.right_pictures} of its {pictures} pictures show that "
        f'shape.</p><div class="story">{"".join(pieces)}</div>'
    )


def _film(film: FilmSeen) -> str:
    seconds = film.num_frames
    lasts = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds} seconds"
    strip = "".join(_picture(frame, "a frame of the video") for frame in film.excerpt)
    turns = "".join(_found(turn) for turn in film.turns)
    return (
        f"<p>A video of {lasts} at one frame a second. Frame {film.place:,} alone lies on blossom; "
        "the model was asked about it once it had seen everything. The frames around it:</p>"
        f'<div class="strip">{strip}</div><ol class="transcript">{turns}</ol>'
    )


def _found(turn: Found) -> str:
    note = f"{turn.read_tokens:,} tokens read, {turn.seconds:.1f} s"
    return turn_item(turn.question, note, turn.response, turn.truth, turn.correct)


def _picture(frame: np.ndarray, says: str) -> str:
    written = io.BytesIO()
    Image.fromarray(frame).save(written, "png")
    return f'<img src="data:image/png;base64,{_text(written.getvalue())}" alt="{escape(says)}">'


def _video(frames: Frames, says: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        content = save_frames(Path(scratch) / "clip.mp4", frames, RATE, scale=SCALE).read_bytes()
    source = f"data:video/mp4;base64,{_text(content)}"
    return f'<video src="{source}" autoplay loop muted playsinline controls aria-label="{escape(says)}"></video>'


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
