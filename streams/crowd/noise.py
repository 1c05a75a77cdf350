"""Differential privacy for what a crowd purpose tells of one window: OpenDP's mechanisms, and OpenDP's accounting.

    people      counted with discrete Laplace noise; a cell is told only if that comes to a threshold (Rogers, "A
                Unifying Privacy Analysis Framework for Unknown Domain Algorithms", 2023)
    the rest    of the cells that are told: events and each sum, with discrete Laplace noise (Canonne, Kamath, Steinke,
                "The Discrete Gaussian for Differential Privacy", 2020)

What is protected: whether a person is in a window at all, and with what. Two windows are neighbours if one has one
person more, with all that `Counts` takes of them: at most `most_per_person` cells, in each at most `most_events` events
and a part of each sum within [low, high]. What is told is (epsilon, delta) differentially private for neighbours; that
one person stands in for another costs twice as much.

What it costs: half of epsilon goes to people, because that also decides which cells are told; events and each sum share
the rest equally. If people are all there is (`most_events` is 1, and there are no sums) they get everything. `Counts`
refuses what goes beyond `daily`: the windows that begin on one day (UTC) cost a person at most `daily`, and delta for
each of them. That is for one purpose: purposes add up, and so do days.

Against whom: everybody who reads what is told, whatever else they know, even all about everybody else. Not against
those who operate the gate: its state holds people and exact counts.

What is not protected:
- Time. When a window is told, and which events were late for it, depends on the clocks of all events: the event of one
  person can let a watermark pass, and so keep out those of others.
- That there is such a purpose, what its policy says, and how many windows there were. So a window of which no cell is
  told must look like one with nobody in it.
- Metrics and logs, which count without noise: they are for those who operate the gate.
- Somebody who acts under several subjects: a person is a subject.

Rules of this file:
- Integers only, with discrete noise: the gaps between floating-point numbers tell which one the noise was added to
  (Mironov, "On Significance of the Least Significant Bits for Differential Privacy", 2012).
- `k` is a floor for the noisy count. A cell of fewer people can be told; one of a single person is, at most with delta.
- No complement guard: subtracting what is told from totals that somebody knows, or whatever else they compute from it,
  is post-processing, and as private as what is told. The guard itself would look at exact counts, and spoil that.
- How many cells are not told is an exact number too, so it is not told either. A mean may be: it is post-processing.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from streams.crowd.release import Released
from streams.crowd.rule import CrowdRule
from streams.crowd.window import Cell, Part
from streams.errors import SettingsError

__all__ = ["Mechanism", "Statistic", "noisy", "statistics"]

_STEPS = 10**9
_FOR_ROUNDING = 1e-9
"""The part of epsilon that nothing gets: OpenDP rounds losses up, and adds them up."""
_HIGHEST = 2**50
"""No threshold lies above this many people."""


class Statistic(NamedTuple):
    """A number that is told of each cell, and what it may cost."""

    name: str
    epsilon: float
    most: int
    """the most by which one person changes it in one cell, in steps"""
    step: int
    """what is told is a multiple of this: more than 1 only where one person's part is above 10^9"""
    of: Callable[[Part], int]

    def steps(self, part: Part) -> int:
        """Return the exact number. Rounding down changes a difference of `most * step` by less than one step."""
        return self.of(part) // self.step


def statistics(rule: CrowdRule) -> list[Statistic]:
    """Return what is told of the cells of a rule with noise, people first, and how epsilon is divided.

    >>> from streams.crowd.rule import Noise, Sum
    >>> sums, noise = (Sum("quantity", -2, 7),), Noise(epsilon=1, delta=1e-6, daily=1)
    >>> rule = CrowdRule("stock", 5, 3_600_000, 0, ("country",), sums, most_events=3, noise=noise)
    >>> [(one.name, round(one.epsilon, 6), one.most, one.step) for one in statistics(rule)]
    [('people', 0.5, 1, 1), ('events', 0.25, 3, 1), ('sum of quantity', 0.25, 7, 1)]

    Raises:
        ValueError: the rule has no noise, or puts no bound on the events of a person.
    """
    if rule.noise is None:
        raise ValueError(f"`{rule.purpose}` has no noise")
    if rule.most_events is None:
        raise ValueError("`most_events` is missing: noise hides a person only if what one adds has a bound")
    rest: list[tuple[str, int, Callable[[Part], int]]] = []
    if rule.most_events > 1:
        rest.append(("events", rule.most_events, lambda part: part.events))
    for place, sum_ in enumerate(rule.sums):
        most = max(1, abs(sum_.low), abs(sum_.high))
        rest.append((f"sum of {sum_.path}", most, lambda part, place=place: part.sums[place]))  # type: ignore[misc]
    epsilon = rule.noise.epsilon * (1 - _FOR_ROUNDING)
    people = Statistic("people", epsilon / 2 if rest else epsilon, 1, 1, lambda part: part.people)
    return [people, *(_stepped(name, epsilon / 2 / len(rest), most, of) for name, most, of in rest)]


def _stepped(name: str, epsilon: float, most: int, of: Callable[[Part], int]) -> Statistic:
    # OpenDP counts in 64 bits. In steps, a billion times a billion people fit, and the noise is wider than a step.
    step = -(-most // _STEPS)
    return Statistic(name, epsilon, -(-most // step), step, of)


class Mechanism:
    """The noise of one rule.

    `threshold` is the fewest people, counted with noise, of a cell that is told; `loss` is the epsilon and the delta of
    one window, as OpenDP adds them up.

    Raises:
        SettingsError: OpenDP is not installed.
        ValueError: the rule lacks a bound, or there is no noise that costs as little as it declares.
    """

    def __init__(self, rule: CrowdRule) -> None:
        self._dp = _opendp()
        self.statistics, noise = statistics(rule), rule.noise
        assert noise is not None  # noqa: S101 - else there were no statistics
        self._cells = rule.most_per_person
        self._windows = (
            self._dp.user_domain("windows", lambda window: isinstance(window, Mapping)),
            self._dp.user_distance("people"),
        )
        try:
            # OpenDP: a loss is sensitivity over scale, for whatever sensitivity `_people` and `_rest` come to.
            self._scales = [one.most * self._cells / one.epsilon for one in self.statistics]
            self.threshold = self._threshold(rule.k, noise.delta)
            self._composition = self._composed()
            self.loss: tuple[float, float] = self._composition.map(1)
        except (self._dp.OpenDPException, OverflowError, ZeroDivisionError) as error:
            raise ValueError(f"OpenDP makes no noise for {noise}: {' '.join(str(error).split())}") from None
        # INVARIANT (noise): what OpenDP's own map says, not what the lines above meant to do.
        if not (self.loss[0] <= noise.epsilon and self.loss[1] <= noise.delta):
            declared = f"({noise.epsilon}, {noise.delta})"
            raise ValueError(f"one window would cost (epsilon, delta) = {self.loss}, and {declared} is declared")

    def release(self, cells: Mapping[Cell, Part]) -> Released:
        """Return what may be told of one window, each cell with noise. Each call costs epsilon: once a window."""
        # OpenDP refuses a query after the last one, and one that costs more than was set down for it.
        ask = self._composition(cells)
        people: dict[str, int] = ask(self._people(self.threshold))
        told = sorted(name.encode() for name in people)
        answers = [[people[cell.decode()] for cell in told]]
        for place, one in enumerate(self.statistics[1:], 1):
            answers.append([number * one.step for number in ask(self._rest(place, told))])
        return Released({cell: self._part([answer[at] for answer in answers]) for at, cell in enumerate(told)}, 0)

    def _part(self, numbers: list[int]) -> Part:
        people, *rest = numbers
        # Where one event counts, each person has exactly one. And nobody has none: that is known anyway.
        events = rest.pop(0) if self.statistics[1:] and self.statistics[1].name == "events" else people
        return Part(people, max(people, events), rest)

    def _threshold(self, k: int, delta: float) -> int:
        """Return the least threshold, from k on, with few enough chances for a cell of one person."""
        choice = range(k, _HIGHEST)
        return choice[min(bisect_left(choice, True, key=lambda least: self._delta(least) <= delta), len(choice) - 1)]

    def _composed(self) -> Any:
        """Return the composition of all statistics: it adds up what they cost."""
        losses = [(self._people(self.threshold).map(1)[0], self._delta(self.threshold))]
        losses += [self._rest(place, []).map(1) for place in range(1, len(self.statistics))]
        measure = self._dp.approximate(self._dp.max_divergence())
        return self._dp.c.make_adaptive_composition(*self._windows, measure, d_in=1, d_mids=losses)

    def _people(self, threshold: int) -> Any:
        """Return the measurement that counts people, and leaves out cells with fewer than so many."""
        dp, cells = self._dp, self._cells
        space = (
            dp.map_domain(dp.atom_domain(T="String"), dp.atom_domain(T="i64")),
            dp.l01inf_distance(dp.absolute_distance(T="i64")),
        )
        count = self.statistics[0].steps
        counted = dp.t.make_user_transformation(
            *self._windows,
            *space,
            lambda window: {cell.decode(): count(part) for cell, part in window.items()},
            lambda people: (people * cells, people * cells, people),
        )
        return counted >> dp.m.make_laplace_threshold(*space, scale=self._scales[0], threshold=threshold)

    def _delta(self, threshold: int) -> float:
        """Return the chance that a person who is alone in their cells has one of them told.

        OpenDP 0.16 tells a cell that comes to the threshold, and leaves that case out of delta (opendp #2922): the
        map of a threshold that is lower by one has the right number. Once that is repaired, this one is too high.
        """
        delta: float = self._people(threshold - 1).map(1)[1]
        return delta

    def _rest(self, place: int, told: list[Cell]) -> Any:
        """Return the measurement of another statistic of the cells that are told."""
        dp, one = self._dp, self.statistics[place]
        most = one.most * self._cells
        nobody = Part(0, 0, [0] * len(self.statistics))
        space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64")
        numbers = dp.t.make_user_transformation(
            *self._windows,
            *space,
            lambda window: [one.steps(window.get(cell, nobody)) for cell in told],
            lambda people: people * most,
        )
        return dp.c.make_approximate(numbers >> dp.m.make_laplace(*space, scale=self._scales[place]))


def noisy(rule: CrowdRule, cells: Mapping[Cell, Part]) -> Released:
    """Return what may be told of one window under the noise of its rule. Call it once a window.

    Raises:
        SettingsError: OpenDP is not installed.
        ValueError: as for `Mechanism`.
    """
    return _mechanism(rule).release(cells)


@lru_cache(maxsize=64)
def _mechanism(rule: CrowdRule) -> Mechanism:
    return Mechanism(rule)


def _opendp() -> Any:
    """Import OpenDP; a policy without noise does without it."""
    try:
        dp = import_module("opendp.prelude")
    except ImportError:
        raise SettingsError(
            "a crowd purpose has `noise`, and OpenDP is not installed; install it: pip install 'celosia[noise]'"
        ) from None
    # "Honest but curious": OpenDP takes our word for how far one person can change what we give it. Each such word is a
    # `make_user_transformation` above, and a property test.
    dp.enable_features("contrib", "honest-but-curious")
    return dp
