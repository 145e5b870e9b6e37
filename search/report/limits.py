"""Which limits the page's sliders offer, as decimals to print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from search.report.points import LOG_SPREAD

POSITIONS = 100  # about as many as a thumb can tell apart
# As tables write them: an accuracy in hundredths of a per cent, a latency with three digits.
ACCURACY_STEP = Decimal("0.0001")
LATENCY_DIGITS = 3
FINEST_GRID = Decimal("1e-9")


def latency_stops(latencies_ms: Iterable[float]) -> list[str]:
    """Returns latency budgets, rising: round numbers, and the tightest for every point.

    The first is below all points. Whoever compares must do so with exactly these numbers.

    Args:
        latencies_ms: Of the points to choose from, at least one, above 0.
    """
    exact = [Decimal(repr(value)) for value in latencies_ms]
    low, high = min(exact), max(exact)
    grid = _decades(low, high) if high > Decimal(LOG_SPREAD) * low else _grid(low, high, low / 20)
    tight = (value.quantize(_last_digit(value), rounding=ROUND_CEILING) for value in exact)
    return _written({*(stop for stop in grid if stop > 0), *tight})


def accuracy_stops(accuracies: Iterable[float]) -> list[str]:
    """Returns lowest accuracies, rising: round numbers, and the tightest for every point.

    The last is above all points, unless one is perfect.

    Args:
        accuracies: Of the points to choose from, at least one, 0..1.
    """
    exact = [Decimal(repr(value)) for value in accuracies]
    grid = _grid(min(exact), max(exact), Decimal("0.01"))
    tight = (value.quantize(ACCURACY_STEP, rounding=ROUND_FLOOR) for value in exact)
    return _written({*(stop for stop in grid if 0 < stop <= 1), *(stop for stop in tight if stop)})


def _grid(low: Decimal, high: Decimal, least_span: Decimal) -> Iterator[Decimal]:
    """Yields multiples of 1, 2 or 5 in some decimal place, from below ``low`` to above ``high``."""
    step = _nice(max(high - low, least_span, FINEST_GRID) / POSITIONS)
    stop = (low / step).to_integral_value(ROUND_CEILING) * step - step
    while stop <= high + step:
        yield stop
        stop += step


def _decades(low: Decimal, high: Decimal) -> Iterator[Decimal]:
    """Yields numbers of two digits, from below ``low`` to above ``high``, whatever their size."""
    exponent = low.adjusted() - 2  # the last number below 1.0 is 0.99
    while True:
        for digits in range(10, 100):
            stop = Decimal(digits).scaleb(exponent)
            following = Decimal(digits + 1).scaleb(exponent)
            if following >= low:
                yield stop
            if stop > high:
                return
        exponent += 1


def _nice(step: Decimal) -> Decimal:
    """Returns the largest of 1, 2 or 5 in some decimal place that is not above ``step``."""
    place = Decimal(1).scaleb(step.adjusted())
    return next(place * digit for digit in (5, 2, 1) if place * digit <= step)


def _last_digit(value: Decimal) -> Decimal:
    return Decimal(1).scaleb(value.adjusted() - LATENCY_DIGITS + 1)


def _written(stops: Iterable[Decimal]) -> list[str]:
    return [f"{stop.normalize():f}" for stop in sorted(stops)]
