"""What a codec keeps of real pictures and videos, and when: there and back through records of codes.

    lwm train vqgan --data.path media/ --held-out.path media/
    python benchmarks/real_media.py media/ --model runs/vqgan/model [--save]

Files are turned into records and those into PNG and mp4 again, as `lwm tokenize` and `lwm detokenize` do it. The PSNR
is that of all frames, against what the codec was given; times are those of the frames of the mp4 against those of the
original. Originals over what came back are drawn into `real_media.png`.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from saving import HARDWARE, save

from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.media import Frames, read_frames
from lwm.prepare.detokenize import DetokenizeConfig, detokenize
from lwm.prepare.items import list_items
from lwm.prepare.tokenize import TokenizeConfig, tokenize
from lwm.weights.codec_store import load_codec

#: frames of each file that are drawn
SHOWN = 4


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of 8-bit pixels, in decibels."""
    return float(-10 * np.log10(np.square(one.astype(np.float64) - other).mean() / 255**2))


def compare(name: str, original: Frames, kept: np.ndarray, written: Frames) -> str:
    """A line of the table."""
    times = original.times - original.times[0]
    apart = np.abs(written.times - times).max() if len(times) > 1 else 0.0
    frame = np.median(np.diff(times)) if len(times) > 1 else 1.0
    return (
        f"| {name} | {len(times)} | {psnr(original.pixels, kept):.1f} dB | "
        f"{psnr(original.pixels, written.pixels):.1f} dB | {1000 * apart:.1f} ms = {apart / frame:.2f} frames |"
    )


def strip(original: Frames, kept: np.ndarray) -> np.ndarray:
    """Some frames side by side, over what came back of them."""
    places = np.linspace(0, len(kept) - 1, SHOWN).astype(int)
    return np.concatenate([np.concatenate(list(frames[places]), axis=1) for frames in (original.pixels, kept)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", help="a directory of pictures and videos")
    parser.add_argument("--model", default="runs/vqgan/model", help="the model whose codec is used")
    parser.add_argument("--picture", type=Path, default=Path("real_media.png"))
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    codec = load_codec(options.model, make_mesh(MeshShape(), jax.devices()[:1]))
    items = list_items((options.media,))
    lines = [
        f"{codec.tokens_per_frame} of {codec.num_codes} codes a frame of {codec.resolution} pixels a side, {HARDWARE}.",
        "",
        "| file | frames | PSNR of the codec | and of the file written | times are off by, at most |",
        "|---|---|---|---|---|",
    ]
    strips = []
    with tempfile.TemporaryDirectory() as scratch:
        records = Path(scratch) / "records.parquet"
        done = tokenize(TokenizeConfig((options.media,), options.model, records), codec)
        for name, reason in done.bad:
            print(f"{name}: {reason}")
        items = [item for item in items if item.name not in dict(done.bad)]
        if not items:
            sys.exit(f"{options.media} holds no picture or video that can be read")
        written = detokenize(DetokenizeConfig(str(records), options.model, Path(scratch) / "seen"), codec)
        for item, file in zip(items, written, strict=True):
            original, back = read_frames(item.path, codec.resolution), read_frames(file, codec.resolution)
            kept = codec.decode(codec.encode(original.pixels))
            lines.append(compare(item.path.name, original, kept, back))
            strips.append(strip(original, kept))
    Image.fromarray(np.concatenate(strips)).save(options.picture)
    print("\n".join(lines))
    if options.save:
        save("real_media", lines)


if __name__ == "__main__":
    main()
