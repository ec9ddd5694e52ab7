"""A chat template says what it says in `transformers`, and a model that has one is asked through it, to the id."""

import dataclasses
import io
import json
import shutil
from datetime import datetime
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import named_leaves
from lwm.data.tokenizer import HuggingFaceTokenizer, load_tokenizer
from lwm.infer import prompts
from lwm.infer.chat_format import LWMChat, Question, TemplateChat, chat_format
from lwm.infer.engine import Engine
from lwm.infer.session import Session
from lwm.infer.templates import ChatTemplate, read_template, turn_ends
from lwm.model.transformer import declare
from lwm.weights.gguf_model import GgufTensors
from lwm.weights.gguf_tokenizer import write_tokenizer
from lwm.weights.load import LoadedModel, load_model
from lwm.weights.store import save_model
from lwm.weights.tensors import whole

CHAT_ML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ALTERNATING = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
  {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}
"""
ALL_SORTS = """{% macro say(message) %}<{{ message.role }}>{{ message.content | tojson }}{% endmacro %}
{% set ns = namespace(count=0) %}
{% for message in messages if message.content %}
    {% set ns.count = ns.count + message.content.split() | length %}
    {{ say(message) }}
    {% if message.role == 'assistant' %}
{% generation %}{% set x = 1 %}{{ message.content }}{% endgeneration %}{% endif %}
    {%- if loop.index > 3 %}{% break %}{% endif %}

{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ ns.count }} {{ unk_token }}{{ pad_token is defined }}{{ x }}
"""
DOUBLED = "{{% set n = namespace(x='ab') %}}{{% for i in range(40) %}}{{% set n.x = n.x {} n.x %}}{{% endfor %}}"
FOR_EVER = "{{% for i in range(99999) %}}{{% for j in range(99999) {} %}}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = [
    [("user", 'Why <is> it \u2615 "so"?')],
    [("system", "Be short.\n"), ("user", " Why? ")],
    [("user", "Why?"), ("assistant", "So.\n"), ("user", "How\n\n?")],
    [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"), ("user", "E")],
]


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": said} for role, said in chat]


@pytest.mark.parametrize("source", [CHAT_ML, LLAMA_3, ALTERNATING, ALL_SORTS])
def test_a_template_says_what_it_says_in_transformers(source: str) -> None:
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "</s>": 1}, []))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    ours, refused = ChatTemplate(source, SPECIAL, Path("x")), 0
    for chat in CHATS:
        for prompted in (True, False):
            options = {"chat_template": source, "tokenize": False, "add_generation_prompt": prompted}
            try:
                expected = theirs.apply_chat_template(messages(chat), **options)
            except Exception:
                refused += 1
                with pytest.raises(UserError, match="in x refuses what is said: Conversation roles must alternate"):
                    ours.render(messages(chat), prompted)
            else:
                assert ours.render(messages(chat), prompted) == expected
    assert refused == (4 if source is ALTERNATING else 0)


def test_a_template_that_knows_the_day() -> None:
    assert datetime.now().strftime("Today Date: %d %b %Y") in ChatTemplate(LLAMA_3, SPECIAL, Path()).render([
        {"role": "user", "content": ""}
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{% if %}", r"not one that Jinja can read: Expected an expression, .* \(line 1\)"),
        ("\n{{ x", r"not one that Jinja can read: .* \(line 2\)"),
        ("{{ x | unknown }}", "not one that Jinja can read: No filter named 'unknown'"),
        ("{{ messages[0].none.more }}", "refuses what is said: .* has no attribute 'none'"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ messages.append(1) }}", "refuses what is said: .* is not safely callable|refuses what is said: .*unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses what is said: access to attribute '__class__'"),
        ("{{ range(10 ** 9) | list }}", "fails: OverflowError: Range too big"),
        (FOR_EVER.format("") + "{% endfor %}" * 2, "refuses what is said: it takes more than 100000 steps"),
        (FOR_EVER.format("if false") + "{% endfor %}" * 2, "more than 100000 steps"),
        ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}", "100000 steps"),
        ("{{ 'a' * 20000000000 }}", "a text or a list of more than 1000000 parts"),
        (DOUBLED.format("~"), "a text or a list of more than 100000000 parts"),
        (DOUBLED.format("+"), "a text or a list of more than 100000000 parts"),
        ("{{ 9 ** (9 ** 9) }}", "a number of more than 100000 bits"),
        ("{{ raise_exception('no system') }}", "in x refuses what is said: no system"),
    ],
)
def test_what_goes_wrong_is_one_sentence(source: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ChatTemplate(source, SPECIAL, Path("x")).render([{"role": "user", "content": "Why?"}])


def test_parts_of_any_kind_are_joined() -> None:
    template = ChatTemplate("{{ 1 ~ ' and ' ~ none ~ missing ~ messages[0].content }}", {}, Path("x"))
    assert template.render([{"role": "user", "content": "?"}]) == "1 and None?"


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None and turn_ends(tmp_path) == ()
    config = tmp_path / "tokenizer_config.json"
    said = [{"role": "user", "content": "Why?"}]
    config.write_text(json.dumps({"chat_template": "one {{ bos_token }}", "bos_token": {"content": "<b>"}}))
    assert read_template(tmp_path).render(said) == "one <b>"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two{{ eos_token }}"}]
    config.write_text(json.dumps({"chat_template": several, "eos_token": "<e>"}))
    assert read_template(tmp_path).render(said) == "two<e>"
    config.write_text(json.dumps({"chat_template": several[:1]}))
    assert read_template(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text("three\n")
    assert read_template(tmp_path).render(said) == "three"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot read the chat template .*chat_template\.jinja"):
        read_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    for content, complaint in [
        ('{"chat_template": 1}', "chat_template is not a text"),
        ("[", "cannot read"),
        ("[" * 100_000, "too deep"),
        ("[]", "JSON"),
    ]:
        config.write_text(content)
        with pytest.raises(UserError, match=complaint):
            read_template(tmp_path)


@pytest.mark.parametrize(("stated", "ends"), [(2, (2,)), ([2, 7], (2, 7)), (None, ()), ("x", None), ([-1], None)])
def test_what_ends_a_turn(stated: object, ends: tuple[int, ...] | None, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    if ends is not None:
        assert turn_ends(tmp_path) == ends
        return
    with pytest.raises(UserError, match="should be an id or a list of ids"):
        turn_ends(tmp_path)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
DOCUMENT = "It was a dark and stormy night; the rain fell in torrents. " * 5


@pytest.fixture(scope="module")
def templated(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The model of the other tests, saved once more with a template beside its tokenizer."""
    directory = tmp_path_factory.mktemp("templated")
    shutil.copy(model.directory / "tokenizer.json", directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": "another"}))
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 200]}')
    saved = save_model(directory / "model", model.config, model.params, directory / "tokenizer.json", "float32")
    return load_model(saved, model.mesh)


def by_itself(model: LoadedModel, engine: Engine, prompt: str) -> str:
    (ids,) = engine.generate([model.tokenizer.encode(prompt)], 12, stop_ids=(2, 200))
    return model.tokenizer.decode(ids).strip()


def test_who_is_asked_how(
    model: LoadedModel, templated: LoadedModel, vision_model: LoadedModel, tmp_path: Path
) -> None:
    text, vision = model.config.vocab, vision_model.config.vocab
    assert isinstance(chat_format(templated.tokenizer, text), TemplateChat)
    assert isinstance(chat_format(model.tokenizer, text), LWMChat)
    assert isinstance(chat_format(templated.tokenizer, vision), LWMChat)
    assert isinstance(chat_format(vision_model.tokenizer, text), LWMChat)
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([DOCUMENT]), model_writer=proto, vocab_size=30, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(proto.getvalue())
    assert isinstance(chat_format(load_tokenizer(tmp_path), text), LWMChat)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.raises(UserError, match=r"tokenizer\.model cannot spell: put the model's tokenizer\.json beside it"):
        chat_format(load_tokenizer(tmp_path), text)


def test_lwms_words_are_what_they_were(model: LoadedModel) -> None:
    chat = LWMChat(model.tokenizer, model.config.vocab)
    for question, prompt in [
        (Question("Why?"), prompts.chat("Why?")),
        (Question("Why?", document=DOCUMENT), prompts.document(DOCUMENT, "Why?")),
    ]:
        assert chat.prompt(question) == (prompt,)
        assert chat.encode((prompt,)) == prompts.encode(model.tokenizer, prompt)
        longer = chat.prompt(Question("How?"), [(question, ("So.",))])
        assert longer == prompts.next_turn((prompt,), ("So.",), "How?")
    assert chat.document_head(DOCUMENT) == (prompts.document_head(DOCUMENT),)
    assert chat.stop_ids == (2,)


def test_a_templated_model_reads_its_template_and_nothing_else(templated: LoadedModel) -> None:
    chat = chat_format(templated.tokenizer, templated.config.vocab)
    assert chat.prompt(Question("Why?"), [(Question("A?"), ("B.",))]) == (
        "<s>[user]A?</s>[assistant]B.</s>[user]Why?</s>[assistant]",
    )
    ids = chat.encode(chat.prompt(Question("Why?")))
    assert ids[0] == 1 and ids.count(1) == 1
    assert chat.stop_ids == (2, 200)
    assert chat.needle_prompt("A text.", ["Oslo"]) == (
        "<s>[user]A text. What is the special magic Oslo number? Don't give information outside the document or "
        "repeat your findings. Keep your response short and direct.</s>[assistant]"
    )


def test_questions_about_a_document(templated: LoadedModel, engine: Engine) -> None:
    session = Session(templated, engine, max_new_tokens=12)
    session.read(DOCUMENT)
    for question in ["Who?", "Where was the rain, exactly?", "Who?"]:
        answer = session.ask(question)
        prompt = f"<s>[user]{DOCUMENT}\n\n{question}</s>[assistant]"
        assert answer.text == by_itself(templated, engine, prompt)
        assert answer.read_tokens == len(templated.tokenizer.encode(f"{question}</s>[assistant]"))


def test_a_remembered_conversation_about_a_document(templated: LoadedModel, engine: Engine) -> None:
    session = Session(templated, engine, max_new_tokens=12, remember=True)
    session.read(DOCUMENT)
    first = session.ask("Who?")
    second = session.ask("Why?")
    prompt = f"<s>[user]{DOCUMENT}\n\nWho?</s>[assistant]{first.text}</s>[user]Why?</s>[assistant]"
    assert second.text == by_itself(templated, engine, prompt)
    assert second.read_tokens < 50 < len(DOCUMENT) < second.prompt_tokens
    session.forget()
    assert session.ask("Why?").text == by_itself(templated, engine, "<s>[user]Why?</s>[assistant]")


def test_a_template_that_a_session_cannot_use(
    model: LoadedModel, templated: LoadedModel, engine: Engine, tmp_path: Path
) -> None:
    shutil.copy(model.directory / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    broken = dataclasses.replace(model, tokenizer=load_tokenizer(tmp_path))
    with pytest.raises(UserError, match=r"chat_template\.jinja is not one that Jinja can read"):
        Session(broken, engine)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('Only in Latin.') }}")
    session = Session(broken, engine)
    with pytest.raises(UserError, match="refuses what is said: Only in Latin"):
        session.ask("Why?")


@pytest.mark.slow
def test_a_real_model_is_asked_as_its_makers_ask_it(smollm2: Path, tmp_path: Path) -> None:
    read = GgufTensors(smollm2)
    tokenizer = load_tokenizer(write_tokenizer(smollm2, tmp_path))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    declared, config = declare(read.config), read.config
    structure = jax.tree.structure(declared, is_leaf=lambda leaf: hasattr(leaf, "axes"))
    leaves = [jax.numpy.asarray(read.read(name, whole(read.specs[name].shape))) for name in named_leaves(declared)]
    mesh = make_mesh(MeshShape(fsdp=1), jax.devices()[:1])
    model = LoadedModel(config, jax.tree.unflatten(structure, leaves), tokenizer, tmp_path, mesh)
    session = Session(model, Engine.of(model), max_new_tokens=24)
    golden = {
        row["prompt"]: row
        for row in json.loads((Path(__file__).parent.parent / "golden/smollm2_greedy.json").read_text())
    }
    row = golden["What is 2+2?"]
    assert np.min(row["margins"]) > 0.3
    answer = session.ask(row["prompt"])
    assert answer.text == tokenizer.decode(row["greedy"])
    assert (answer.prompt_tokens, answer.finished) == (len(row["ids"]), True)
