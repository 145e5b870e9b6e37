"""What every step results in that changes a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from search.records.network import Network


@dataclass(frozen=True)
class Edited:
    """A network as a technique left it.

    Attributes:
        network: The same as before where the technique found nothing to change.
        figures: What the technique says of it, by name.
    """

    network: Network
    figures: Mapping[str, float] = field(default_factory=dict)
