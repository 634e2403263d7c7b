"""Prompts and chats around the stories: requests, small questions and polite refusals."""

from __future__ import annotations

import random
from typing import Protocol

from models.story_cast import Tale
from models.story_types import Plot


class Told(Protocol):
    """What a chat needs to know of a finished story."""

    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def plot(self) -> Plot: ...
    @property
    def tale(self) -> Tale: ...


USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"

_SYSTEMS = (
    "You are a storyteller.",
    "You tell short stories for children.",
    "You are a kind assistant who tells stories.",
    "You are a helpful assistant.",
    "Answer with a short story.",
)
_VERBS = (
    "Tell me a story", "Tell a story", "Write a story", "Write a short story", "Please tell me a story",
    "Can you tell me a story", "I would like a story", "Tell me a short story", "Write me a story",
    "Tell me a bedtime story", "Make up a story", "A story",
)  # fmt: skip
_HELLOS = (
    ("Hello!", "Hello! Would you like to hear a story?"),
    ("Hi", "Hello! Tell me what the story should be about."),
    ("Hello, how are you?", "I am well, thank you. Shall I tell you a story?"),
    ("Who are you?", "I am a small model that tells small stories."),
    ("What can you do?", "I can tell short stories about animals, people, things and places."),
    ("Good evening", "Good evening! It is a good time for a story. What should it be about?"),
)
_UNKNOWN = (
    "What is the capital of France?", "What is 12 times 7?", "Write a Python function.",
    "Who won the election?", "Explain how a computer works.", "What is the weather today?",
    "Translate this into German.", "Solve this equation.", "What is the speed of light?",
    "Give me a recipe for soup.", "How do I fix my car?", "What year is it?",
)  # fmt: skip
_SORRY = (
    "I do not know that. I can only tell small stories. Would you like one?",
    "I am a small model, and I only know stories. Shall I tell you one?",
    "That is too hard for me. But I can tell you a story about {0} and {1}.",
)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _subject(rng: random.Random, theme: str, tale: Tale) -> str:
    """What the story is about, in words that the story then bears out."""
    a, b, c, t = (tale.slots[key] for key in "abct")
    kind, thing = _article(a.kind), t.a  # type: ignore[attr-defined]
    plain = _article(str(t))
    options = (
        _article(f"{a.adj} {a.kind}"),  # type: ignore[attr-defined]
        f"{kind} and {plain}", f"{kind} and {thing}", f"{kind}", f"{kind} named {a}",
        f"{a} the {a.kind}", f"{plain}", f"{kind} and {_article(b.kind)}", theme,  # type: ignore[attr-defined]
        f"{kind} who learns about {theme}", f"{a} and {b}", f"{kind} named {a} and {plain}",
        f"{kind}, {_article(b.kind)} and {plain}", f"{kind} in {tale.slots['town']}",  # type: ignore[attr-defined]
        f"{a}, {b} and {c}",
    )  # fmt: skip
    return rng.choice(options[:4] * 2 + options)


def request(rng: random.Random, theme: str, tale: Tale) -> str:
    """A request such as "Tell me a story about a fox and a lantern."."""
    verb = rng.choice(_VERBS)
    mark = "?" if verb.startswith("Can") else rng.choice((".", ".", "."))
    ending = rng.choice((mark, mark, mark, ""))
    return f"{verb} about {_subject(rng, theme, tale)}{ending}"


def chaptered(rng: random.Random, title: str, text: str, tale: Tale) -> str:
    """A long story, plain under its title or as the answer to a request for a long story."""
    if rng.random() < 0.6:
        return f"{title}\n\n{text}"
    hero = tale.slots["a"]
    ask = rng.choice(("Tell me a long story about", "Write a story in chapters about"))
    subject = rng.choice((f"{hero}", _article(getattr(hero, "kind", "hero"))))
    return f"{USER}{ask} {subject}.{END}{ASSISTANT}{title}\n\n{text}{END}"


def _turn(question: str, answer: str) -> str:
    return f"{USER}{question}{END}{ASSISTANT}{answer}{END}"


def _question(rng: random.Random, one: Told) -> str:
    """A small question about the story that was just told, with its answer."""
    hero, friend = one.tale.slots["a"], one.tale.slots["b"]
    kind, other = getattr(hero, "kind", ""), getattr(friend, "kind", "")
    pairs = (
        (f"What was the {kind} called?", f"The {kind} was called {hero}."),
        (f"Who was {hero}?", f"{hero} was {_article(kind)}."),
        (f"Who was {friend}?", f"{friend} was {_article(other)}."),
        (f"What was the {other} called?", f"The {other} was called {friend}."),
        ("Give the story a title.", one.title),
        ("What is the story about?", f"It is about {one.plot.theme}."),
        ("Where does the story take place?", f"It takes place in {one.tale.slots['town']}."),
        ("Thank you!", "You are welcome! Come back when you want another story."),
    )
    return _turn(*rng.choice(pairs))


def chat(rng: random.Random, one: Told, another: Told | None) -> str:
    """A chat with a story in it, at times with small talk, a question or a second story."""
    parts = [f"{SYSTEM}{rng.choice(_SYSTEMS)}{END}"] if rng.random() < 0.3 else []
    if rng.random() < 0.1:
        parts.append(_turn(*rng.choice(_HELLOS)))
    elif rng.random() < 0.06:
        subjects = (
            _article(getattr(one.tale.slots["a"], "kind", "")),
            _article(str(one.tale.slots["t"])),
        )
        parts.append(_turn(rng.choice(_UNKNOWN), rng.choice(_SORRY).format(*subjects)))
    parts.append(_turn(request(rng, one.plot.theme, one.tale), one.text))
    if rng.random() < 0.35:
        parts.append(_question(rng, one))
    if another is not None:
        ask = request(rng, another.plot.theme, another.tale)
        parts.append(_turn(rng.choice(("Another one, please. ", "Thank you! ", "")) + ask, another.text))
    return "".join(parts)
