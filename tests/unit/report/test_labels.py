"""Labels keep clear of points and of one another."""

from __future__ import annotations

from itertools import combinations

from search.report.labels import Box, place_labels

ROOM = Box(0, 0, 1000, 1000)


def overlap(one: Box, other: Box) -> bool:
    across = one.left < other.right and other.left < one.right
    return across and one.bottom < other.top and other.bottom < one.top


def test_lone_label_stands_above_left() -> None:
    (box,) = place_labels([(500.0, 500.0)], [(20.0, 10.0)], [], ROOM, gap=10)
    assert box == Box(473, 507, 493, 517)


def test_label_at_the_edge_stays_inside() -> None:
    (box,) = place_labels([(0.0, 1000.0)], [(20.0, 10.0)], [], ROOM, gap=10)
    assert ROOM.holds(box)


def test_label_avoids_an_obstacle() -> None:
    wall = Box(0, 501, 499, 1000)
    (box,) = place_labels([(500.0, 500.0)], [(20.0, 10.0)], [wall], ROOM, gap=10)
    assert not overlap(box, wall)


def test_crowded_labels_do_not_overlap() -> None:
    anchors = [(500.0 + 4 * n, 500.0 + 2 * n) for n in range(12)]
    points = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in anchors]
    boxes = place_labels(anchors, [(24.0, 12.0)] * 12, points, ROOM, gap=8)
    assert not any(overlap(one, other) for one, other in combinations(boxes, 2))


def test_room_too_small_still_gives_a_place() -> None:
    (box,) = place_labels([(5.0, 5.0)], [(20.0, 10.0)], [], Box(0, 0, 10, 10), gap=10)
    assert box.right - box.left == 20


def test_what_only_touches_a_label_does_not_move_it() -> None:
    walls = [Box(493, 507, 600, 600), Box(400, 517, 600, 600)]
    (box,) = place_labels([(500.0, 500.0)], [(20.0, 10.0)], walls, ROOM, gap=10)
    assert box == Box(473, 507, 493, 517)


def test_nearest_place_of_a_box() -> None:
    box = Box(0, 0, 2, 1)
    assert box.nearest((5, 0.5)) == (2, 0.5)
    assert box.nearest((1, 0.5)) == (1, 0.5)
