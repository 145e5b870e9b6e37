"""What every network promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch.nn import functional as F

from search.engine.store import Store
from search.networks import networks
from search.records.network import NetworkSpec

ImageShape = tuple[int, int, int]
Specify = Callable[[ImageShape, int], NetworkSpec]
SEED = 0


class ModelContract:
    """A suite for one network.

    Fixtures: ``specify``, a function that returns the ``NetworkSpec`` for images of a shape
    ``(channels, height, width)`` and a number of classes; and ``store``, a ``Store``.

    Attributes:
        cases: Shapes and numbers of classes that it is built for; a subclass may have others.
    """

    cases: ClassVar[tuple[tuple[ImageShape, int], ...]] = (((1, 28, 28), 10), ((3, 32, 24), 3))

    def test_it_gives_a_logit_for_each_class(self, specify: Specify) -> None:
        """Whatever the images, the classes and the batch."""
        for shape, classes in self.cases:
            network = networks.build(specify(shape, classes)).eval()
            for batch in (1, 5):
                logits = network(torch.randn(batch, *shape))
                assert logits.shape == (batch, classes), (shape, classes)
                assert torch.isfinite(logits).all(), (shape, classes)

    def test_images_do_not_influence_each_other_when_evaluated(self, specify: Specify) -> None:
        """Or a trial's accuracy would depend on the size of its batches."""
        for shape, classes in self.cases:
            network = networks.build(specify(shape, classes)).eval()
            images = torch.randn(3, *shape)
            with torch.no_grad():
                together = network(images)
                alone = torch.cat([network(image[None]) for image in images])
            torch.testing.assert_close(together, alone)

    def test_every_parameter_learns(self, specify: Specify) -> None:
        """What never changes is no parameter but a buffer."""
        for shape, classes in self.cases:
            torch.manual_seed(SEED)
            network = networks.build(specify(shape, classes)).train()
            labels = torch.arange(2 * classes) % classes
            F.cross_entropy(network(torch.randn(2 * classes, *shape)), labels).backward()
            idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
            assert idle == [], (shape, classes)

    def test_the_same_seed_gives_the_same_network(self, specify: Specify) -> None:
        """A study is repeated by its seed."""
        states = []
        for _ in range(2):
            torch.manual_seed(SEED)
            states.append(networks.build(specify(*self.cases[0])).state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_it_is_rebuilt_from_its_record(self, specify: Specify, store: Store) -> None:
        """With the same weights, the same answers and the same count of work."""
        for shape, classes in self.cases:
            spec = specify(shape, classes)
            network = networks.build(spec).eval()
            kept = networks.save(network, spec, store)
            again = networks.load(kept, store)
            images = torch.rand(2, *shape)
            with torch.no_grad():
                assert torch.equal(network(images), again(images))
            assert networks.save(again, spec, store) == kept
            assert kept.macs > 0
            assert kept.parameters == sum(p.numel() for p in network.parameters()) > 0
