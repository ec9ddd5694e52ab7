"""Draw with an exported model, without JAX: draw_with_transformers.py MODEL CODEC "a red square" square.png"""

from argparse import ArgumentParser

import torch
from diffusers import VQModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main(arguments=None):
    """Read the command line, draw codes with guidance away from a prompt without words, decode them to a picture."""
    parser = ArgumentParser()
    for name in ("model", "codec", "caption", "out"):
        parser.add_argument(name)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args(arguments)
    model, codec = AutoModelForCausalLM.from_pretrained(args.model), VQModel.from_pretrained(args.codec)
    tokenizer, vocab = AutoTokenizer.from_pretrained(args.model), model.config.lwm_vocab
    texts = f"You are a helpful assistant. USER: Generate an image of {args.caption} ASSISTANT:", "<vision>"
    words, opening = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    asked, unasked = (torch.tensor([[vocab["bos_id"], *ids]]) for ids in (words + opening, opening))
    first, count = vocab["text_size"], vocab["tokens_per_frame"]
    allowed = torch.arange(first, first + vocab["num_codes"])  # the rest are text and marks between frames
    sampling = {"do_sample": args.temperature > 0, "temperature": args.temperature or None, "top_k": 0}
    tokens = model.generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=count, guidance_scale=args.guidance,
        negative_prompt_ids=unasked, prefix_allowed_tokens_fn=lambda *_: allowed, **sampling
    )  # fmt: skip
    codes, side = tokens[:, -count:] - first, int(count**0.5)
    pixels = codec.decode(codes, force_not_quantize=True, shape=(1, side, side, codec.quantize.vq_embed_dim)).sample[0]
    black, white = codec.config.get("_pixel_range", (0, 1))
    levels = ((pixels - black) / (white - black)).clip(0, 1) * 255
    Image.fromarray(levels.round().byte().permute(1, 2, 0).numpy()).save(args.out)


if __name__ == "__main__":
    main()
