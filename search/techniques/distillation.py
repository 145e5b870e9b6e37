"""Learning from the teacher's logits.

Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

from search.space.dimension import Dimension
from search.space.domains import Range
from search.techniques import Technique

TEMPERATURE = Dimension(
    name="distill_temperature",
    group="training",
    domain=lambda cores: Range(1.0, 10.0, log=True),
    sound=3.0,
    label="temperature",
    phrase="temperature {:.3g}",
)
WEIGHT = Dimension(
    name="distill_weight",
    group="training",
    domain=lambda cores: Range(0.0, 1.0),
    sound=0.9,
    label="distill weight",
    phrase="distillation weight {:.3g}",
)
TECHNIQUE = Technique("distillation", (TEMPERATURE, WEIGHT))
