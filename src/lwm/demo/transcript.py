"""Questions and answers as HTML, wherever on the page they stand."""

from html import escape


def turn_item(asked: str, note: str, response: str, truth: str, correct: bool) -> str:
    """One question of a list: what was asked (`note`: in small print), what the model said, what is true."""
    return (
        f'<li><p class="question">{escape(asked)} <small>{escape(note)}</small></p>'
        f"<dl><div><dt>model</dt><dd>{said(response)}</dd></div><div><dt>true</dt><dd>{escape(truth)}</dd></div></dl>"
        f"{verdict(correct)}</li>"
    )


def said(response: str) -> str:
    """What a model answered, also if it was nothing."""
    return escape(response) or "<em>nothing</em>"


def verdict(correct: bool) -> str:
    """Right or wrong, as a sign and as a word."""
    mark, word = ("✓", "right") if correct else ("✗", "wrong")
    return f'<p class="verdict {word}"><span aria-hidden="true">{mark}</span> {word}</p>'
