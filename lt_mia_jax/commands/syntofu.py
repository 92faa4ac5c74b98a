"""`lt-mia syntofu`: fictitious authors, and tiny models with and without them."""

import dataclasses

from lt_mia_jax.outputs import Output, Writing, WritingFlags
from lt_mia_jax.study import syntofu as study

WRITES = Output(("data", "models", "run.json", "config.json"), fixed=("data",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynTofu(study.SynTofu):
    """Write SynTOFU, the offline analogue of TOFU, and train its tiny models.

    A `base` model learns the language from people who are never forgotten. From it,
    `full` learns all fictitious authors, and for each size of the forget set
    `retainNN` learns the remaining ones only: what perfect unlearning would give.
    Takes minutes on two cores; the same command continues a stopped run.
    """

    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


def run(config: SynTofu) -> None:
    """Write the data and train every model that is not finished yet."""
    study.write_data(config)
    executor = config.devices.make()
    for name in config.models:
        study.train_model(config, name, executor)
