"""The cast of one tale: characters, a thing and a place, with their words and pronouns."""

from __future__ import annotations

import random

import story_words as words
from story_types import Plot

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


def make_thing(rng: random.Random, category: str) -> Thing:
    """Choose a thing of a category; "any" is one of the light or the solid ones."""
    if category == "any":
        category = rng.choice(("light", "solid", "solid"))
    nouns, adjectives = _CATEGORIES[category]
    noun = rng.choice(nouns)
    return Thing(noun, rng.choice([adj for adj in adjectives if adj not in noun] or [""]))


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
        town = rng.choice(words.TOWN_HEADS) + rng.choice(words.TOWN_TAILS)
        self.slots |= {"town": town, "land": rng.choice(words.LANDS), "season": season}
        self.names: set[str] = set()
        self.kinds: set[str] = set()

    def being(self, skill: str = "any", hero: bool = False, young: bool = False) -> Being:
        """Create a character whose name and kind are not used yet."""
        pool = words.ANIMALS + (words.CHILDREN * 8 if hero else words.PEOPLE)
        if hero and not young and self.rng.random() < 0.25:
            pool = words.PEOPLE
        fits = [kind for kind in pool if _suits(kind, skill) and kind.noun not in self.kinds]
        kind = self.rng.choice(fits)
        female = _gender(self.rng, kind)
        names = words.SHE_NAMES if female else words.HE_NAMES
        name = self.rng.choice([name for name in names if name not in self.names])
        self.names.add(name)
        self.kinds.add(kind.noun)
        return Being(kind, female, name, self._adjective(kind, hero))

    def _adjective(self, kind: words.Kind, hero: bool) -> str:
        grown = kind in words.PEOPLE[2:]
        choices = words.HELPER_ADJ if not hero else words.ADULT_ADJ if grown else words.HERO_ADJ
        adj = self.rng.choice(choices)
        clash = ("young", "sleepy") if kind.noun.startswith("old") else ()
        return "kind" if adj in clash or (kind.noun == "giant" and "little" in adj) else adj

    def renew(self, plot: Plot) -> None:
        """Draw the thing, the place and the others for a plot; the hero stays if there is one."""
        slots, rng = self.slots, self.rng
        if "a" not in slots:
            slots["a"] = self.being(hero=True, young=plot.young)
        friend = slots.get("b")
        # A friend of an earlier chapter may come again where the skill suits.
        keep = isinstance(friend, Being) and plot.helper in ("any", friend.skill)
        if not keep or rng.random() < 0.4:
            slots["b"] = self.being(plot.helper)
        slots["c"] = self.being(plot.third)
        slots["t"] = make_thing(rng, plot.things)
        place = rng.choice(words.PLACES)
        slots["q"] = _Where(place)
        slots |= {f"sense{i + 1}": text for i, text in enumerate(place.senses)}
        slots["food"] = make_thing(rng, "food").a
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
