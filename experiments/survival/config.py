"""The options of the survival study."""

import dataclasses
from pathlib import Path

from lt_mia_jax.models import ModelConfig, gpt2_like

STRENGTHS = {"weak": 1, "medium": 3, "strong": 6}
"""Most passes over the members; the pass with the lowest validation loss is kept."""
CORPORA = {"a": "ml_docs", "b": "ml_code"}
"""What the two experts learn; the base knows neither."""
KNOWN = ("py_code", "speeches")
"""What the base is pretrained on."""
VOCABULARY, RATE = 2048, 5e-4
"""Of the tokenizer; learning rate of experts and of all that goes on from them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One run of the survival study."""

    out: Path = Path("runs/survival")
    """Folder of everything that is made."""
    seed: int = 0
    """Decides roles of texts, membership, initial weights and order."""
    members: int = 320
    """Texts that an expert learns; half as many controls are learned by no model."""
    nonmembers: int = 640
    """Texts with which both are compared."""
    validation: int = 100
    """Texts that choose the epoch of an expert."""
    steps: int = 600
    """Updates of the base; its early version is the one after a fifth of them."""
    length: int = 128
    """Tokens that a text is cut to."""
    width: int = 96
    """Of all models; 24 for each head."""
    layers: int = 6
    """Of all models."""
    strengths: tuple[str, ...] = tuple(STRENGTHS)
    """How long experts learn: weak, medium or strong."""

    @property
    def model(self) -> ModelConfig:
        """The architecture of all models."""
        return gpt2_like(
            VOCABULARY,
            width=self.width,
            layers=self.layers,
            heads=self.width // 24,
            context=self.length,
        )
