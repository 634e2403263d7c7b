"""The shape of a plot."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Plot(NamedTuple):
    """A plot skeleton: paragraphs of template text and the coherent variants that fill them."""

    theme: str
    things: str
    titles: tuple[str, ...]
    paragraphs: tuple[str, ...]
    variants: tuple[Mapping[str, str], ...] = (MappingProxyType({}),)
    rules: Mapping[str, str] = MappingProxyType({})
    helper: str = "any"
    third: str = "any"
    seasons: str = "spring summer autumn winter"
