"""The options of the transfer study."""

import dataclasses
from pathlib import Path

from experiments.transfer import plan as transfer_plan
from experiments.transfer.plan import Plan, Preset
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.study.stages import Combination


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One run of the transfer study."""

    preset: Preset = "tiny"
    """tiny: own small models and offline text, some hours on 2 cores. paper: the
    published grid of hub models and data sets. check: a few minutes, to try it out."""

    out: Path = Path("runs/transfer")
    """Folder of everything that is made."""

    seed: int = 0
    """Decides roles of texts, membership, initial weights and order."""

    models_from: Path | None = None
    """Folder with the preset's models: for a/b the directory a_b, in lower case."""

    data_from: Path | None = None
    """Folder with the preset's data sets: NAME.jsonl, or NAME/ with Parquet files."""

    only: tuple[str, ...] = ()
    """Use only bases whose names begin with one of these; all by default."""

    without: tuple[str, ...] = ()
    """Leave out bases whose names begin with one of these: models that you may not
    load, or that do not fit."""

    members: int | None = None
    """Texts to fine-tune on in each combination; the preset's number by default."""

    epochs: int | None = None
    """Most passes over the members, where the preset has more."""

    nonmembers: int | None = None
    """Texts that stay unseen; the preset's number by default."""

    validation: int | None = None
    """Texts that choose the epoch; the preset's number by default."""

    attack_epochs: int | None = None
    """Passes over the attack's rows; the preset's number by default."""

    permutations: int = 20
    """Of the labels of each judged combination, which the text-only control learns too:
    what it reaches with them is what it reaches where texts tell nothing."""

    batch_size: int = 32
    """Texts in one forward pass of the extraction."""

    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where each job runs."""

    def plan(self) -> Plan:
        """The preset with the numbers that were given."""
        plan = transfer_plan.PRESETS[self.preset]()
        if self.only or self.without:
            plan = transfer_plan.part(plan, self.only, self.without)
        if self.attack_epochs is not None:
            shorter = {"epochs": self.attack_epochs}
            plan = dataclasses.replace(
                plan,
                main=plan.main.trained(**shorter),
                small=plan.small and plan.small.trained(**shorter),
            )
        return dataclasses.replace(
            plan,
            train=tuple(map(self._changed, plan.train)),
            judge=tuple(map(self._changed, plan.judge)),
        )

    def _changed(self, combination: Combination) -> Combination:
        given = {
            name: getattr(self, name)
            for name in ("members", "nonmembers", "validation")
            if getattr(self, name) is not None
        }
        if self.epochs is not None:
            given["epochs"] = min(combination.epochs, self.epochs)
        return dataclasses.replace(combination, **given)

    def folder(self, combination: Combination) -> Path:
        """Of one combination."""
        return self.out / "combinations" / combination.name
