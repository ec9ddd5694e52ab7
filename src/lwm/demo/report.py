"""The page: one file that needs nothing else, readable on a phone, in the dark, and by a screen reader."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

import matplotlib as mpl

from lwm.demo.conversation import Conversation, Turn
from lwm.demo.transcript import turn_item
from lwm.demo.world import WorldSeen
from lwm.demo.world_page import world_section
from lwm.evals.heat_map import COLOUR_MAP
from lwm.evals.journal import Row
from lwm.evals.lengths import short
from lwm.evals.needle_report import NeedleReport
from lwm.evals.score import wilson_interval


def page(needles: NeedleReport, conversation: Conversation, facts: Row, world: WorldSeen | None = None) -> str:
    """The tour as HTML; a model of text alone has no `world`."""
    template = Template(resources.files("lwm.demo").joinpath("report_template.html").read_text(encoding="utf-8"))
    within = [row for row in needles.results if row["context_length"] <= facts["max_context"]]
    beyond = [row for row in needles.results if row["context_length"] > facts["max_context"]]
    return template.substitute(
        model=escape(facts["model"]),
        headline=_headline(within, needles, facts),
        figures=_figures(within, beyond, needles, conversation, facts),
        heat_map=_heat_map(needles),
        lengths=_lengths(needles, facts),
        longest=short(needles.lengths[-1]),
        trained=short(facts["max_context"]),
        parameters=_count(facts["parameters"]),
        document_tokens=f"{facts['document_tokens']:,}",
        documents=", ".join(f"<code>{escape(name)}</code>" for name in facts["documents"]),
        document=escape(conversation.document),
        read_tokens=f"{conversation.num_tokens:,}",
        excerpt=_excerpt(conversation),
        transcript="".join(_turn(turn) for turn in conversation.turns),
        score=f"{sum(turn.correct for turn in conversation.turns)} of {len(conversation.turns)}",
        and_to_see="" if world is None else ", and to see and draw a world of four shapes",
        world="" if world is None else world_section(world, facts["seconds"]["world"]),
        timings=_definitions(_timings(conversation, facts)),
        versions=_definitions(facts["versions"].items()),
        machine=escape(facts["machine"]),
        command=escape(facts["command"]),
    )


def _headline(within: Sequence[Row], needles: NeedleReport, facts: Row) -> str:
    tried = within or needles.results
    share = sum(row["correct"] for row in tried) / len(tried)
    longest = short(max(row["context_length"] for row in tried))
    verdict = "It found every needle" if share == 1 else f"It found {_percent(share)} of needles"
    read = f"{_count(facts['parameters'])} parameters read up to {short(needles.lengths[-1])} tokens"
    return f"{read}. {verdict} up to {longest}."


def _figures(
    within: Sequence[Row], beyond: Sequence[Row], needles: NeedleReport, conversation: Conversation, facts: Row
) -> str:
    """The few numbers to take away."""
    figures = []
    for rows, where in ((within, "within"), (beyond, "beyond")):
        if rows:
            found, total = sum(row["correct"] for row in rows), len(rows)
            low, high = wilson_interval(found, total)
            label = f"found {where} the {short(facts['max_context'])} tokens it was trained for"
            note = f"{found} of {total}; 95% interval {_percent(low)} to {_percent(high)}"
            figures.append((_percent(found / total), label, note))
    answered = sum(turn.correct for turn in conversation.turns)
    figures.append(
        (f"{answered}/{len(conversation.turns)}", "questions about one document right", "each from one reading")
    )
    figures.append((f"{conversation.prefill_rate:,.0f}", "tokens read a second", escape(facts["machine"])))
    return "".join(
        f"<li><strong>{value}</strong><span>{label}</span><small>{note}</small></li>" for value, label, note in figures
    )


def _heat_map(needles: NeedleReport) -> str:
    """A table, so that it can be read aloud, selected and reflowed; colours as in `evals.heat_map`."""
    limit = needles.facts["max_context"]
    heads = "".join(f'<th scope="col"{_beyond(length, limit)}>{short(length)}</th>' for length in needles.lengths)
    rows = "".join(
        f'<tr><th scope="row">{depth}%</th>{"".join(_cell(needles, length, depth) for length in needles.lengths)}</tr>'
        for depth in needles.depths
    )
    return f'<thead><tr><th scope="col">depth</th>{heads}</tr></thead><tbody>{rows}</tbody>'


def _cell(needles: NeedleReport, length: int, depth: int) -> str:
    counted = needles.by_cell.get((length, depth))
    attributes = _beyond(length, needles.facts["max_context"])
    if counted is None:
        return f'<td{attributes}><span class="untried" title="not tried">&middot;</span></td>'
    share: float = counted["accuracy"]
    background = mpl.colors.to_hex(mpl.colormaps[COLOUR_MAP](share))
    colour = "#000" if share > 0.5 else "#fff"
    title = f"{counted['correct']} of {counted['total']} found at {length:,} tokens, {depth}% deep"
    style = f"background:{background};color:{colour}"
    return f'<td{attributes}><span style="{style}" title="{title}">{100 * share:.0f}</span></td>'


def _beyond(length: int, limit: int) -> str:
    return ' class="beyond"' if length > limit else ""


def _lengths(needles: NeedleReport, facts: Row) -> str:
    rows = []
    for length, counted in needles.by_length.items():
        seconds = facts["seconds_per_prompt"].get(str(length))
        speed = "" if seconds is None else f"{seconds:.2f} s"
        rows.append(
            f'<tr><th scope="row">{short(length)}</th><td>{counted["correct"]} of {counted["total"]}</td>'
            f"<td>{_percent(counted['low'])} to {_percent(counted['high'])}</td><td>{speed}</td></tr>"
        )
    return "".join(rows)


def _excerpt(conversation: Conversation) -> str:
    text = escape(conversation.excerpt)
    planted = escape(conversation.planted)
    return text.replace(planted, f"<mark>{planted}</mark>")


def _turn(turn: Turn) -> str:
    note = f"planted {turn.depth_percent}% deep"
    return turn_item(turn.question, note, turn.response, turn.truth, turn.correct)


def _timings(conversation: Conversation, facts: Row) -> list[tuple[str, str]]:
    seconds = facts["seconds"]
    return [
        ("in all", f"{seconds['all']:.0f} s"),
        ("loading the model", f"{seconds['load']:.1f} s"),
        ("compiling", f"{seconds['compile']:.1f} s"),
        ("reading", f"{conversation.prefill_rate:,.0f} tokens/s at {conversation.num_tokens:,} tokens"),
        ("answering", f"{conversation.decode_rate:,.0f} tokens/s after them"),
        ("peak memory", f"{facts['peak_memory_bytes'] / 2**30:.2f} GiB"),
        ("weights on disk", f"{facts['file_bytes'] / 10**6:.1f} MB"),
    ]


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)


def _percent(share: float) -> str:
    """Rounded, but only all of it is 100%."""
    return f"{100 * share if share == 1 else min(100 * share, 99):.0f}%"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 10**5 else f"{number:,}"
