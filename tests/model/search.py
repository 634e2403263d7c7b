"""Breadth-first search of a bounded world: all that can happen, and from everywhere a way to the end."""

import gc
from collections.abc import Callable
from typing import NamedTuple

from tests.model.promises import check, drained, finished
from tests.model.state import State, Violation, initial
from tests.model.world import FAULT, ZOMBIE, World


class Result(NamedTuple):
    states: int
    violation: str  # empty: no promise is broken
    trace: list[str]  # how to get there, shortest first

    def __str__(self) -> str:
        steps = "".join(f"\n{i:4}. {label}" for i, label in enumerate(self.trace, 1))
        return f"{self.states} states; {self.violation or 'all promises hold'}{steps}"


class Search:
    """All states that can be reached, in the order of their distance."""

    def __init__(self, world: World, most: int, whole: bool = True) -> None:
        """At most this many states: of a world that is not to be searched as a `whole`, the first ones."""
        self.world, self.most, self.whole = world, most, whole
        self.states: list[State] = []
        self.number: dict[State, int] = {}
        self.came: list[tuple[int, str]] = []
        self.ways: list[list[tuple[int, str]]] = []  # to each state: (from, kind of the move)

    def run(self) -> Result:
        """Until a promise is broken, or everything was seen. AssertionError over `most` states."""
        gc.disable()  # millions of small tuples and no cycle: looking for one would take a third of the time
        try:
            self.add(initial(self.world.bounds), -1, "")
            for n, state in enumerate(self.states):
                self.expand(n, state)
                if len(self.states) > self.most:
                    assert not self.whole, f"more than {self.most} states"
                    return Result(len(self.states), "", [])
            return self.stuck()
        except Broken as broken:
            return Result(len(self.states), broken.what, broken.trace)
        finally:
            gc.enable()

    def expand(self, n: int, state: State) -> None:
        moves = self.world.moves(state)
        while True:
            try:
                move = next(moves, None)
            except Violation as violation:
                raise Broken(str(violation), [*self.trace(n), self.world.trying]) from None
            if move is None:
                return
            if move.state not in self.number:
                self.add(move.state, n, move.label)
            if move.kind != FAULT:
                self.ways[self.number[move.state]].append((n, move.kind))

    def add(self, state: State, source: int, label: str) -> None:
        self.number[state] = len(self.states)
        self.states.append(state)
        self.came.append((source, label))
        self.ways.append([])
        try:
            check(state)
        except Violation as violation:
            raise Broken(str(violation), self.trace(len(self.states) - 1)) from None

    def trace(self, n: int) -> list[str]:
        labels: list[str] = []
        while self.came[n][0] >= 0:
            labels.append(self.came[n][1])
            n = self.came[n][0]
        return labels[::-1]

    def stuck(self) -> Result:
        """From everywhere, without another fault, all can be finished without the zombie, and then all given back."""
        goals: list[tuple[Callable[[State], bool], bool, str]] = [
            (finished, False, "a request cannot be finished without the stopped worker"),
            (drained, True, "blocks never come back"),
        ]
        for goal, zombies, what in goals:
            lost = self.cannot_reach(goal, zombies)
            if lost is not None:
                return Result(len(self.states), what, self.trace(lost))
        return Result(len(self.states), "", [])

    def cannot_reach(self, goal: Callable[[State], bool], zombies: bool) -> int | None:
        """The first state from which no way leads to the goal."""
        good = [goal(state) for state in self.states]
        todo = [n for n, reached in enumerate(good) if reached]
        while todo:
            for source, kind in self.ways[todo.pop()]:
                if not good[source] and (zombies or kind != ZOMBIE):
                    good[source] = True
                    todo.append(source)
        return next((n for n, reached in enumerate(good) if not reached), None)


class Broken(Exception):  # noqa: N818 - ends a search
    def __init__(self, what: str, trace: list[str]) -> None:
        super().__init__(what)
        self.what, self.trace = what, trace
