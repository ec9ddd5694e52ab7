from html.parser import HTMLParser

import pytest

from lwm.demo.conversation import Conversation, Turn
from lwm.demo.report import page
from lwm.evals.needle_report import NeedleReport

VOID = {"meta", "br", "hr", "img", "link"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps texts and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.attributes, self.tags = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def rows(length, depth, *correct):
    cell = {"context_length": length, "depth_percent": depth}
    return [cell | {"correct": right, "fraction_found": float(right)} for right in correct]


@pytest.fixture
def html():
    results = rows(1024, 0, True, True) + rows(1024, 100, True, False) + rows(2048, 0, False)
    about = {"model": "nano", "needles": 1, "retrieve": 1, "max_context": 1024, "haystack_tokens": 5000}
    turns = (
        Turn("What is the password for <Bob>?", "<script>a-b", ("a-b",), 40),
        Turn("What is the door code of Bob?", "", ("1234",), 60),
    )
    talk = Conversation("turtle", 1000, "The code is <7>.", "before\nThe code is <7>.\nafter", turns, 1234.5, 99.0)
    facts = {
        "model": "nano",
        "parameters": 1_066_112,
        "file_bytes": 2_132_224,
        "max_context": 1024,
        "documents": ["topic:debugger", "turtle"],
        "document_tokens": 5000,
        "seconds": {"load": 1.0, "compile": 20.0, "all": 100.0},
        "seconds_per_prompt": {"1024": 0.05},
        "peak_memory_bytes": 2**30,
        "machine": "2 cores of a <processor>",
        "versions": {"Python": "3.11.7", "jax": "0.10.2"},
        "command": "lwm demo --seed 0",
    }
    return page(NeedleReport(results, about), talk, facts)


def test_the_page_needs_nothing_but_itself(html):
    reader = Reader(html)
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name in ("src", "href", "onclick")]
    assert "url(" not in html and "http" not in html and "@import" not in html


def test_the_page_says_what_was_found(html):
    texts = " ".join(Reader(html).texts)
    assert "1.1 million parameters read up to 2K tokens. It found 75% of needles up to 1K." in texts
    assert "3 of 4; 95% interval 30% to 95%" in texts
    assert "0 of 1; 95% interval 0% to 79%" in texts
    assert "Asked about one document: 1 of 2 right" in texts
    assert "1,234 tokens/s at 1,000 tokens" in texts and "1.00 GiB" in texts and "lwm demo --seed 0" in texts


def test_what_was_not_tried_is_not_shown_as_a_zero(html):
    titles = [value for name, value in Reader(html).attributes if name == "title"]
    assert titles == [
        "2 of 2 found at 1,024 tokens, 0% deep",
        "0 of 1 found at 2,048 tokens, 0% deep",
        "1 of 2 found at 1,024 tokens, 100% deep",
        "not tried",
    ]


def test_what_a_model_says_is_text_and_not_markup(html):
    reader = Reader(html)
    assert "<script>a-b" in reader.texts
    assert "What is the password for <Bob>?" in reader.texts
    assert "<mark>The code is &lt;7&gt;.</mark>" in html


def test_it_adapts_to_phones_and_to_the_dark(html):
    assert ("name", "viewport") in Reader(html).attributes
    assert "prefers-color-scheme: dark" in html
