"""Whether a model can read texts of a length, and whether it was trained to."""

import logging

from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import Attention, ModelConfig, Rotary

log = logging.getLogger(__name__)


def check_length(length: int, **models: ModelConfig | None) -> None:
    """Refuse texts of more tokens than a model has positions; None is not checked.

    Rotary positions have no end: beyond those of training a warning is logged.

    Args:
      length: tokens of the longest text.
      **models: the models by what they are called in messages.

    Raises:
      InputError: more tokens than the rows of a position table.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> from lt_mia_jax.models.length import check_length
      >>> config = gpt2_like(64, width=16, layers=1, heads=2, context=8)
      >>> check_length(8, target=config)
      >>> check_length(9, target=config)
      Traceback (most recent call last):
      lt_mia_jax.errors.InputError: --length 9: the target has 8 positions; ...
    """
    for name, config in models.items():
        if config is None or length <= config.context:
            continue
        if config.embedding.positions is not None:
            raise InputError(
                f"--length {length}: the {name} has {config.context} positions; give "
                f"--length {config.context} or less"
            )
        if _learns_range(config):
            log.warning(
                "--length %d: the %s was trained on texts of at most %d tokens; "
                "log-probabilities of later tokens may say nothing about it",
                length,
                name,
                config.context,
            )


def _learns_range(config: ModelConfig) -> bool:
    """Whether rotary attention sees distances as large as the text is long."""
    mixers = [block.mixer for block in config.pattern]
    return any(
        isinstance(mixer, Attention)
        and isinstance(mixer.position, Rotary)
        and mixer.window is None
        for mixer in mixers
    )
