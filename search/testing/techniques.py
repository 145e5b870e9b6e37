"""What every technique promises."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.networks import networks
from search.records.bench import Bench
from search.records.network import Network
from search.records.point import Point, Value
from search.records.steps.editing import Edited
from search.space.dimension import dimensions
from search.space.space import Space
from search.techniques import Technique
from search.testing.dimensions import CORES, check_registered, check_sound, check_words, ends


class TechniqueContract:
    """A suite for one technique.

    Fixtures: ``technique``; ``network``, a record of any network whose weights are in ``store``, a
    ``Store``; and ``setting``, a ``Bench`` for it, such as ``search.testing.benches`` makes.
    """

    def test_what_is_sound_is_allowed(self, technique: Technique) -> None:
        """A study begins with what is sound, on whatever device."""
        check_sound(technique.dimensions)

    def test_values_can_be_said(self, technique: Technique) -> None:
        """Every value has words, and no two of them the same."""
        check_words(technique.dimensions)

    def test_its_dimensions_are_registered(self, technique: Technique) -> None:
        """Their names are nobody else's, so that configurations can name them."""
        check_registered(technique.dimensions)

    def test_a_changed_network_is_rebuilt(
        self, technique: Technique, network: Network, setting: Bench, store: Store
    ) -> None:
        """What an edit leaves computes the same after it was read from its record again."""
        for edited in self._edited(technique, network, setting, store):
            module = networks.load(edited.network, store)
            images = torch.rand(2, *network.spec.image_shape)
            with torch.no_grad():
                logits = module(images)
                again = networks.load(edited.network, store)(images)
            assert logits.shape == (2, network.spec.classes)
            assert torch.equal(logits, again)
            kept = networks.save(module, network.spec, store, edited.network.edits)
            assert replace(kept, weights=edited.network.weights) == edited.network

    def test_the_same_point_leaves_the_same_bytes(
        self, technique: Technique, network: Network, setting: Bench, store: Store
    ) -> None:
        """Steps are remembered by their inputs alone."""
        first, second = (
            [
                hashlib.sha256(store.path(one.network.weights).read_bytes()).hexdigest()
                for one in self._edited(technique, network, setting, store)
            ]
            for _ in range(2)
        )
        assert first == second

    def _edited(
        self, technique: Technique, network: Network, setting: Bench, store: Store
    ) -> list[Edited]:
        """Returns what it makes of a network at the ends of its dimensions."""
        if technique.edit is None:
            return []
        steps = [technique.edit(point, network, setting) for point in _points(technique)]
        return [
            InlineEngine(store, lambda event: None).run(step).result
            for step in steps
            if step is not None
        ]


def _points(technique: Technique) -> list[Point]:
    """Returns points that differ in a technique's own dimensions, one at a time."""
    everything = dimensions()
    space = Space({one.name: one.domain(max(CORES)) for one in everything}, everything)
    sound: dict[str, Value] = {one.name: one.sound for one in everything}
    return [
        space.make({**sound, one.name: value})
        for one in technique.dimensions
        for value in ends(one.domain(max(CORES)))
    ]
