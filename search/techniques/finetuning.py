"""How a student is trained after its network was changed."""

from __future__ import annotations

from search.space.dimension import Dimension
from search.space.domains import Choice, Range
from search.techniques import Technique

USUAL_RATE = 0.004  # AdamW's, where no better one was found
OPTIMIZER = Dimension(
    name="optimizer",
    group="training",
    domain=lambda cores: Choice(("sgd", "adam", "adamw", "rmsprop")),
    sound="adamw",
    label="optimizer",
    phrase="{}",
)
LEARNING_RATE = Dimension(
    name="learning_rate",
    group="training",
    domain=lambda cores: Range(1e-6, 1.0, log=True),
    sound=USUAL_RATE,
    label="learning rate",
    phrase="learning rate {:.3g}",
)
SCHEDULE = Dimension(
    name="schedule",
    group="training",
    domain=lambda cores: Choice(("constant", "step", "cosine", "one_cycle", "plateau")),
    sound="one_cycle",
    label="schedule",
    phrase="{}",
)
TECHNIQUE = Technique("fine-tuning", (OPTIMIZER, LEARNING_RATE, SCHEDULE))
