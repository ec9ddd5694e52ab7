"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

EXAMPLES = Path(__file__).parent.parent / "examples"
VOCAB = {"text_size": 40, "vision_size": 26, "num_codes": 24, "tokens_per_frame": 16, "bos_id": 1, "eos_id": 2}
PROMPT = "You are a helpful assistant. USER: Generate an image of a red square ASSISTANT:"


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A tiny model and a tiny VQGAN, drawn at random, as they would be exported."""
    import tokenizers

    directory = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=66, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.5, lwm_vocab=VOCAB, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory / "model")
    words = ["<unk>", "<s>", "</s>", *dict.fromkeys((PROMPT + " <vision>").split())]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(directory / "model")
    codec = diffusers.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, num_vq_embeddings=24, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=6, vq_embed_dim=4, norm_num_groups=4,
        mid_block_add_attention=False, lookup_from_codebook=True,
    )  # fmt: skip
    codec.quantize.embedding.weight.data.normal_(0, 3)
    codec.save_pretrained(directory / "codec")
    return directory


def drawn_plainly(exported: Path, guidance: float) -> np.ndarray:
    """Codes out of whole forward passes, one for each id, with and without the words."""
    model = transformers.LlamaForCausalLM.from_pretrained(exported / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "model")
    words, opening = (tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, "<vision>"))
    drawn: list[int] = []
    for _ in range(VOCAB["tokens_per_frame"]):
        with torch.no_grad():
            asked, unasked = (
                model(torch.tensor([[1, *ids, *drawn]])).logits[0, -1, 40:64] for ids in (words + opening, opening)
            )
        drawn.append(40 + int((unasked + guidance * (asked - unasked)).argmax()))
    return np.array(drawn) - 40


def picture_of(exported: Path, codes: np.ndarray) -> np.ndarray:
    codec = diffusers.VQModel.from_pretrained(exported / "codec")
    with torch.no_grad():
        vectors = codec.quantize.embedding.weight[torch.from_numpy(codes)].reshape(1, 4, 4, 4).permute(0, 3, 1, 2)
        pixels = codec.decoder(codec.post_quant_conv(vectors))[0]
    return (pixels.clip(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_draw_with_transformers(guidance, exported, tmp_path):
    out = tmp_path / "drawn.png"
    main = load_example("draw_with_transformers").main
    fixed = [str(exported / "model"), str(exported / "codec"), "a red square", str(out)]
    main([*fixed, "--guidance", str(guidance), "--temperature", "0"])
    codes = drawn_plainly(exported, guidance)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), picture_of(exported, codes))
    assert len(set(codes)) > 3
    if guidance != 1:
        assert (codes != drawn_plainly(exported, 1.0)).any()


def test_draw_with_transformers_draws_by_chance(exported, tmp_path):
    main = load_example("draw_with_transformers").main
    pictures = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        out = tmp_path / f"{len(pictures)}.png"
        main([str(exported / "model"), str(exported / "codec"), "a red square", str(out)])
        pictures.append(np.asarray(Image.open(out)))
    assert pictures[0].shape == (8, 8, 3)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


def test_the_example_is_short_and_knows_nothing_of_this_package():
    text = (EXAMPLES / "draw_with_transformers.py").read_text()
    assert len(text.splitlines()) <= 40
    assert "import lwm" not in text and "from lwm" not in text
