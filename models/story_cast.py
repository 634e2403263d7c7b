"""The cast of one tale: characters, a thing and a place, with their words and pronouns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from models import story_words as words
from models.story_types import Plot

_PLURALS = {"foot": "feet", "hoof": "hooves"}
SMALL = words.ANIMALS + words.CHILDREN


class Being:
    """A character; pronouns follow its gender, and it is introduced once by ``intro``."""

    def __init__(self, kind: words.Kind, female: bool, name: str, adj: str) -> None:
        self.kind = kind.noun
        self.name = name
        self.adj = adj
        self.modest = "small" if kind in SMALL else "not rich"
        self.skill = kind.skill
        self.known = False
        self.hand, self.home = kind.hand, f"{kind.home}"
        self.female = female
        self.up = "flew" if kind.skill == "fly" else "climbed"
        self.he, self.him, self.his = ("she", "her", "her") if female else ("he", "him", "his")
        self.himself = "herself" if female else "himself"
        self.He, self.His = self.he.capitalize(), self.his.capitalize()
        self.the, self.The = f"the {kind.noun}", f"The {kind.noun}"
        self.hands = _PLURALS.get(kind.hand, kind.hand + "s")
        self.place_home = f"{name}'s home"

    def __str__(self) -> str:
        return self.name

    @property
    def intro(self) -> str:
        """The phrase that introduces the character; later uses fall back to the name."""
        if self.known:
            return self.name
        self.known = True
        return f"a {self.adj} {self.kind} named {self.name}"

    @property
    def named(self) -> str:
        """Like ``intro``, with the name first: "Pip the fox"."""
        self.known = True
        if self.kind in ("girl", "boy", "old woman", "old man"):
            return f"a {self.adj} {self.kind} named {self.name}"
        return f"{self.name} the {self.kind}"


class Thing:
    """The thing that a plot turns on."""

    def __init__(self, noun: str, adj: str) -> None:
        self.noun = noun
        full = f"{adj} {noun}".strip()
        self.a = f"an {full}" if full[0] in "aeiou" else f"a {full}"
        self.the, self.The = f"the {noun}", f"The {noun}"
        self.long = f"the {full}"

    def __str__(self) -> str:
        return self.noun


_CATEGORIES = {
    "light": (words.LIGHT_THINGS, words.COLORS),
    "solid": (words.SOLID_THINGS, words.COLORS + words.METALS),
    "food": (words.FOODS, [""]),
    "boat": (words.BOATS, words.COLORS),
    "plant": (words.PLANTS, [""]),
    "lamp": (words.LAMPS, words.COLORS),
    "gift": (words.GIFTS, [""]),
}


@cache
def _favorites(pool: tuple[str, ...], key: str, count: int) -> list[str]:
    return random.Random(f"{key} {len(pool)}").sample(pool, min(count, len(pool)))


def prefer(rng: random.Random, pool: Sequence[str], key: str, count: int = 3) -> str:
    """Choose a word, at times one of the few that go with ``key``.

    With evenly drawn words a model that takes the likeliest token would give every character the
    same name; leanings such as "foxes are often called Wren" keep them apart.
    """
    if rng.random() < 0.45:
        # The smaller of two draws: the first favorites come up the most.
        liked = _favorites(tuple(pool), key, count)
        return liked[min(rng.randrange(len(liked)), rng.randrange(len(liked)))]
    return rng.choice(pool)


def make_thing(rng: random.Random, category: str, key: str) -> Thing:
    """Choose a thing of a category; "any" is one of the light or the solid ones."""
    if category == "any":
        category = rng.choice(("light", "solid", "solid"))
    nouns, adjectives = _CATEGORIES[category]
    noun = prefer(rng, nouns, key)
    return Thing(noun, prefer(rng, [adj for adj in adjectives if adj not in noun] or [""], noun))


def _gender(rng: random.Random, kind: words.Kind) -> bool:
    return kind.gender == "she" or (kind.gender == "any" and rng.random() < 0.5)


def _suits(kind: words.Kind, skill: str) -> bool:
    wanted = {"high": ("fly", "climb")}.get(skill, (skill,))
    if skill == "any":
        return True
    if skill == "animal":
        return kind in words.ANIMALS
    return kind.skill in wanted


class Tale:
    """Everything one story is told with; ``fill`` puts it into the slots of a template."""

    def __init__(self, rng: random.Random, season: str) -> None:
        self.rng = rng
        self.season = season
        self.local: dict[str, str] = {}
        self.slots: dict[str, object] = {}
        self.slots |= {"land": rng.choice(words.LANDS), "season": season}
        self.names: set[str] = set()
        self.kinds: set[str] = set()

    def being(self, key: str, skill: str = "any", hero: bool = False) -> Being:
        """Create a character whose name and kind are not used yet; ``key`` sways the kind."""
        pool = words.ANIMALS + (words.CHILDREN * 8 if hero else words.PEOPLE)
        if hero and self.rng.random() < 0.25:
            pool = words.PEOPLE
        fits = {kind.noun: kind for kind in pool if _suits(kind, skill)}
        nouns = [kind.noun for kind in pool if kind.noun in fits]
        noun = prefer(self.rng, nouns, key, 10 if hero else 3)
        while noun in self.kinds:
            noun = self.rng.choice(nouns)
        kind = fits[noun]
        female = _gender(self.rng, kind)
        names = words.SHE_NAMES if female else words.HE_NAMES
        name = prefer(self.rng, names, kind.noun)
        while name in self.names:
            name = self.rng.choice(names)
        self.names.add(name)
        self.kinds.add(kind.noun)
        return Being(kind, female, name, self._adjective(kind, hero))

    def _adjective(self, kind: words.Kind, hero: bool) -> str:
        grown = kind in words.PEOPLE[2:]
        choices = words.HELPER_ADJ if not hero else words.ADULT_ADJ if grown else words.HERO_ADJ
        adj = prefer(self.rng, choices, kind.noun)
        clash = ("young", "sleepy") if kind.noun.startswith("old") else ()
        return "kind" if adj in clash or (kind.noun == "giant" and "little" in adj) else adj

    def renew(self, plot: Plot) -> None:
        """Draw the thing, the place and the others for a plot; the hero stays if there is one."""
        slots, rng = self.slots, self.rng
        hero = slots.get("a")
        if not isinstance(hero, Being):
            hero = slots["a"] = self.being(plot.titles[0], hero=True)
            head = prefer(rng, words.TOWN_HEADS, hero.kind)
            slots["town"] = head + prefer(rng, words.TOWN_TAILS, head)
        friend = slots.get("b")
        # A friend of an earlier chapter may come again where the skill suits.
        keep = isinstance(friend, Being) and plot.helper in ("any", friend.skill)
        if not keep or rng.random() < 0.4:
            friend = slots["b"] = self.being(hero.kind, plot.helper)
        slots["c"] = self.being(getattr(friend, "kind", ""), plot.third)
        slots["t"] = make_thing(rng, plot.things, hero.kind)
        place = rng.choice(words.PLACES)
        slots["q"] = _Where(place)
        slots |= {f"sense{i + 1}": text for i, text in enumerate(place.senses)}
        slots["food"] = make_thing(rng, "food", "").a
        slots["day"] = rng.choice(words.SEASONS[self.season].split("|"))

    def fill(self, text: str) -> str:
        """Fill the slots of a piece of template text."""
        return text.format_map(self.slots) if "{" in text else text


_SIDES = {
    "lake shore": "lake",
    "river bank": "river",
    "mountain path": "mountain",
    "beach": "bay",
}


class _Where:
    """A place as templates see it: its prepositions with the noun."""

    def __init__(self, place: words.Place) -> None:
        self.noun, self.side = place.noun, _SIDES.get(place.noun, place.noun)
        self.at, self.to = f"{place.at} the {place.noun}", f"{place.to} the {place.noun}"


def new_tale(rng: random.Random, plot: Plot, season: str | None = None) -> Tale:
    """Set up a tale for a plot."""
    tale = Tale(rng, season or rng.choice(plot.seasons.split()))
    tale.renew(plot)
    return tale
