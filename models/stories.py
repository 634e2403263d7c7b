"""Seeded generator of small stories: a grammar with characters, things, causes and endings.

``python -m models.stories --seed 7 --count 3`` prints three training documents as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from models import story_chat, story_plots_heart, story_plots_lost, story_plots_night, story_plots_way
from models.story_cast import Tale, new_tale
from models.story_rules import LESSONS, RULES
from models.story_types import Plot

PLOTS: tuple[Plot, ...] = (
    *story_plots_lost.PLOTS,
    *story_plots_heart.PLOTS,
    *story_plots_night.PLOTS,
    *story_plots_way.PLOTS,
)
NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")


class Node(NamedTuple):
    """One parsed piece of a template: plain text, a rule name or a list of alternatives."""

    kind: str
    text: str
    choices: tuple[tuple[Node, ...], ...] = ()


def _parse(template: str, at: int) -> tuple[tuple[tuple[Node, ...], ...], int]:
    """Parse alternatives from position ``at`` up to the closing bracket or the end."""
    choices: list[tuple[Node, ...]] = []
    nodes: list[Node] = []
    while at < len(template) and template[at] != "]":
        mark = template[at]
        if mark == "[":
            inner, at = _parse(template, at + 1)
            nodes.append(Node("alt", "", inner))
        elif mark == "|":
            choices.append(tuple(nodes))
            nodes = []
        elif mark == "<":
            end = template.index(">", at)
            nodes.append(Node("rule", template[at + 1 : end]))
            at = end
        else:
            end = at
            while end < len(template) and template[end] not in "[]|<":
                end += 1
            nodes.append(Node("text", template[at:end]))
            at = end - 1
        at += 1
    return (*choices, tuple(nodes)), at


@cache
def parsed(template: str) -> tuple[tuple[Node, ...], ...]:
    """Return the alternatives of a template; parsing is cached as templates are constants."""
    return _parse(template, 0)[0]


def expand(choices: tuple[tuple[Node, ...], ...], tale: Tale, out: list[str]) -> None:
    """Append the text of one randomly chosen alternative to ``out``, in reading order."""
    for node in tale.rng.choice(choices):
        if node.kind == "text":
            out.append(tale.fill(node.text))
        elif node.kind == "alt":
            expand(node.choices, tale, out)
        else:
            expand(parsed(tale.local.get(node.text) or RULES[node.text]), tale, out)


_VOWEL = re.compile(r"\b([Aa]) (?=(?!one\b|uni|use|eu)[aeiouAEIOU])")
_SENTENCE = re.compile(r"(^\"?|[.!?] \"?)([a-z])")


def polish(text: str) -> str:
    """Fix spaces, ``a``/``an`` and capitals at the start of sentences."""
    text = re.sub(r"\s+", " ", text).strip()
    text = _VOWEL.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda hit: hit.group(1) + hit.group(2).upper(), text)


def paragraph(template: str, tale: Tale) -> str:
    """Expand a paragraph template for this tale."""
    out: list[str] = []
    expand(parsed(template), tale, out)
    return polish("".join(out))


def tell(plot: Plot, tale: Tale, first: bool = True, last: bool = True) -> str:
    """Tell one plot: an opening or a link, the plot's paragraphs and the lesson."""
    tale.local = {**plot.rules, **tale.rng.choice(plot.variants), "lesson": LESSONS[plot.theme]}
    parts = [paragraph("<opening>" if first else "<link>", tale)]
    for index, piece in enumerate(plot.paragraphs, 1):
        # A remark on the side now and then, so that not even equal plots run alike.
        inside = index < len(plot.paragraphs)
        aside = " <aside>" if inside and tale.rng.random() < 0.08 else ""
        parts.append(paragraph(piece + aside, tale))
    if not last:
        parts.append(paragraph("<chapter_end>", tale))
    elif tale.rng.random() < 0.3:
        parts.append("The end.")
    return "\n\n".join(parts)


def _title(plot: Plot, tale: Tale) -> str:
    words = paragraph(tale.rng.choice(plot.titles), tale).split()
    small = {"a", "an", "the", "and", "of", "in", "at", "on", "to", "for", "by", "who"}
    keep = [w if i and w in small else w[:1].upper() + w[1:] for i, w in enumerate(words)]
    return " ".join(keep)


class Told(NamedTuple):
    """A finished story with what a prompt may ask about."""

    title: str
    text: str
    plot: Plot
    tale: Tale


def story(rng: random.Random) -> Told:
    """Tell one story of one plot."""
    plot = rng.choice(PLOTS)
    tale = new_tale(rng, plot)
    text = tell(plot, tale)
    return Told(_title(plot, tale), text, plot, tale)


def chapters(rng: random.Random, count: int) -> Told:
    """Tell a long story: several plots that happen to the same hero in one season."""
    season = rng.choice(("spring", "summer", "autumn"))
    fitting = [plot for plot in PLOTS if season in plot.seasons]
    # One plot of each title and theme at most: two lost things in a row would tire anyone.
    plots = rng.sample(list({plot.titles: plot for plot in fitting}.values()), count)
    tale = new_tale(rng, plots[0], season)
    parts: list[str] = []
    heading = paragraph("The [Adventures|Travels|Days|Story|Tales] of {a}", tale)
    for index, plot in enumerate(plots):
        if index:
            tale.renew(plot)
        body = tell(plot, tale, first=index == 0, last=index == count - 1)
        parts.append(f"Chapter {NUMBERS[index]}: {_title(plot, tale)}\n\n{body}")
    return Told(heading, "\n\n".join(parts), plots[0], tale)


def document(rng: random.Random) -> str:
    """Draw one training document: a story, a row of stories, chapters, a prompt or a chat."""
    roll = rng.random()
    if roll < 0.10:
        long = chapters(rng, rng.randint(3, 8))
        return story_chat.chaptered(rng, long.title, long.text, long.tale)
    if roll < 0.16:
        told = [story(rng) for _ in range(rng.randint(2, 6))]
        return "\n\n* * *\n\n".join(f"{one.title}\n\n{one.text}" for one in told)
    one = story(rng)
    if roll < 0.40:
        return one.text
    if roll < 0.50:
        return f"{one.title}\n\n{one.text}"
    if roll < 0.68:
        request = story_chat.request(rng, one.plot.theme, one.tale)
        return f"{request}\n\n{one.text}"
    another = story(rng) if rng.random() < 0.15 else None
    return story_chat.chat(rng, one, another)


def documents(seed: int, count: int) -> Iterator[str]:
    """Yield ``count`` training documents; the same seed gives the same documents."""
    rng = random.Random(seed)
    for _ in range(count):
        yield document(rng)


def main() -> None:
    """Write documents as JSON lines to standard output, or as plain text with --plain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--plain", action="store_true", help="print readable text, no JSON")
    options = parser.parse_args()
    for text in documents(options.seed, options.count):
        line = f"{text}\n\n{'=' * 72}\n" if options.plain else json.dumps(text)
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
