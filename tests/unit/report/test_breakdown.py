"""What a profile says of kernels becomes shares of a latency that nobody looked at."""

from __future__ import annotations

import pytest

from search.records.profile import Comparison, Kernel, Layer, ModelProfile
from search.report.breakdown import draw_up, lanes, total_us
from search.runtimes.onnxruntime import FORMATS


def kernel(operator: str, layer: str, us: float, channels: int = 16, kind: str = "float") -> Kernel:
    shape = (1, channels, 4, 4)
    return Kernel(operator, layer, us, ((kind, shape),), ((kind, shape),))


def model(
    *kernels: Kernel, latency_ms: float = 0.1, layers: tuple[Layer, ...] = ()
) -> ModelProfile:
    return ModelProfile(FORMATS[32], 1, layers, kernels, {1: latency_ms}, 5.0)


def compare(one: ModelProfile, call_ms: float = 0.01, looking_us: float = 4.0) -> Comparison:
    return Comparison(one, one, call_ms, looking_us)


def test_kernels_and_the_call_add_up_to_the_latency() -> None:
    profile = model(
        kernel("Conv", "a", 64.0), kernel("ReorderOutput", "a", 10.0), kernel("Gemm", "b", 28.0)
    )
    budget = draw_up(profile, compare(profile))
    assert budget.whole_us == 100.0
    assert budget.call_us == 10.0
    # 60, 6 and 24 without the looking: 90, which is what the call leaves.
    assert [one.us for one in budget.spent] == [60.0, 6.0, 24.0]
    assert (budget.layer_us("a"), budget.layer_us("b"), budget.layer_us("c")) == (66.0, 24.0, 0.0)
    assert budget.share(budget.parts["b"]) == pytest.approx(0.24)
    assert budget.main("a").kernel.operator == "Conv"


@pytest.mark.parametrize("took", [[3.0, 9.0], [2.0], [2.0, 2.0], [5.0, 4.0, 3.0]])
@pytest.mark.parametrize("call_ms", [0.0, 0.03, 0.5])
def test_nothing_is_lost_or_negative(took: list[float], call_ms: float) -> None:
    """Also where a kernel takes less than looking should, and a call more than the model."""
    profile = model(*(kernel("Conv", str(us), us) for us in took))
    budget = draw_up(profile, compare(profile, call_ms))
    assert all(one.us >= 0 for one in budget.spent)
    assert total_us(budget.spent) + budget.call_us == pytest.approx(budget.whole_us)


@pytest.mark.parametrize(
    ("operator", "outputs", "computed", "found"),
    [
        ("Conv", 16, 16, None),
        ("Conv", 4, 16, (4, 16)),  # the runtime's own padding
        ("Conv", 24, 32, (24, 32)),
        ("QLinearConv", 13, 4, (13, 16)),  # channels last: the device's rounding
        ("QLinearConv", 32, 4, None),
        ("Gemm", 13, 13, None),
    ],
)
def test_lanes(operator: str, outputs: int, computed: int, found: tuple[int, int] | None) -> None:
    profile = model(kernel(operator, "a", 9.0, computed), layers=(Layer("a", 3, outputs, 1),))
    assert lanes(draw_up(profile, compare(profile)), "a", 16) == found


def test_padding_shows_where_the_device_asks_for_none() -> None:
    profile = model(kernel("Conv", "a", 9.0, 16), layers=(Layer("a", 3, 12, 1),))
    assert lanes(draw_up(profile, compare(profile)), "a", 4) == (12, 16)
