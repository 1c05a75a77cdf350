"""What a number of trials proves about a chance, and so about epsilon.

A bound is wrong with at most `WRONG`, whatever the chance is: it is Clopper and Pearson's (Biometrika, 1934), except
that the tail of the binomial distribution is bounded by Chernoff's inequality, which makes it a little wider.
"""

import math

WRONG = 1e-8
"""Fewer than a hundred bounds are computed in a run, so a run is wrong less than once in a million."""


def _divergence(seen: float, chance: float) -> float:
    parts = [(seen, chance), (1 - seen, 1 - chance)]
    return sum(mine * math.log(mine / other) if other > 0 else math.inf for mine, other in parts if mine > 0)


def _furthest(hits: int, trials: int, end: float) -> float:
    """Return the chance nearest to `end` that such a number of hits does not rule out."""
    seen, beyond = hits / trials, end
    near = seen
    for _ in range(60):
        middle = (near + beyond) / 2
        if trials * _divergence(seen, middle) <= math.log(1 / WRONG):
            near = middle
        else:
            beyond = middle
    return beyond


def least(hits: int, trials: int) -> float:
    """Return a bound from below.

    >>> round(least(50_000, 100_000), 3), least(0, 100)
    (0.49, 0.0)
    """
    return _furthest(hits, trials, 0.0) if hits else 0.0


def most(hits: int, trials: int) -> float:
    """Return a bound from above.

    >>> round(most(50_000, 100_000), 3), round(most(0, 100), 3), most(100, 100)
    (0.51, 0.168, 1.0)
    """
    return _furthest(hits, trials, 1.0) if hits < trials else 1.0


def breaks(epsilon: float, delta: float, likely: int, unlikely: int, trials: int) -> bool:
    """Tell whether an event is so much likelier in one of two neighbouring windows that the promise is broken.

    >>> breaks(1.0, 0.0, 30_000, 10_000, 100_000), breaks(1.0, 0.0, 27_000, 10_000, 100_000)
    (True, False)
    """
    return least(likely, trials) > math.exp(epsilon) * most(unlikely, trials) + delta
