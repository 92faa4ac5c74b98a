"""What a learned attack is: architecture and sizes, as data."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lt_mia_jax.errors import BELOW_1, InputError, between, check_ranges

Architecture = Literal["transformer", "lr", "mlp", "mean_mlp", "pooled_transformer"]
Block = Literal["truth", "head", "tail", "loss", "text"]
BLOCKS: tuple[Block, ...] = get_args(Block)
_SIZE = between(1, 2**14)
_SIZES = ("inputs", "length", "width", "heads", "layers", "feed_forward")

MAX_STEPS = 512
"""Rows of the sinusoidal table: the longest sequence the transformer reads."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the classifier; the defaults are the paper's (827,906 parameters)."""

    architecture: Architecture = "transformer"
    """`transformer` is the attack; the other four are ablations on the same input."""
    inputs: int = 154
    """Feature columns, 7k + 14."""
    blocks: tuple[Block, ...] = BLOCKS
    """What it sees of them: the true token's logits and ranks, those of the most and of
    the least likely tokens, its losses, and statistics of the whole text's losses."""
    log_probabilities: bool = False
    """See log-probabilities of the true token, not raw logits, which differ between
    models by what says nothing of the text. The lists of tokens have to be hidden:
    theirs are not in the features. Off by default, as in the paper."""
    length: int = 128
    """Steps per sequence. Only `lr` and `mlp`, which flatten, are tied to it."""
    width: int = 192
    """Model width of the two transformer architectures; even."""
    heads: int = 8
    """Attention heads; must divide `width`."""
    layers: int = 2
    """Encoder layers."""
    feed_forward: int = 576
    """Inner width of the feed-forward blocks."""
    hidden: tuple[int, ...] = (256, 128)
    """Hidden widths of `mlp` and `mean_mlp`."""
    dropout: float = 0.05
    """Rate of every dropout, active only when a key is passed to `apply`."""
    standardise: bool = False
    """Standardize each input column with constants measured on the training rows.
    Off by default, as in the paper; which is better is an open question."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming every one."""
        sizes = {name: (getattr(self, name), _SIZE) for name in _SIZES}
        sizes |= {"layers": (self.layers, between(1, 256))}
        wrong = (width for width in self.hidden if not _SIZE.holds(width))
        sizes |= {"hidden": (next(wrong, 1), _SIZE)}
        check_ranges("classifier", **sizes, dropout=(self.dropout, BELOW_1))
        if self.width % 2:
            raise InputError(f"width {self.width} is odd; the sinusoids need it even")
        if self.architecture == "transformer" and self.width % self.heads:
            raise InputError(
                f"width {self.width} is not a multiple of heads {self.heads}"
            )
        unknown = set(self.blocks) - set(BLOCKS)
        if unknown or not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise InputError(
                f"blocks are {' '.join(self.blocks) or 'none'}; expected one or more, "
                f"each once, of {' '.join(BLOCKS)}"
            )
        lists = [block for block in ("head", "tail") if block in self.blocks]
        if self.log_probabilities and lists:
            raise InputError(
                f"log_probabilities with the blocks {' and '.join(lists)}: their raw "
                "logits cannot be normalized afterwards; hide them, as with "
                "--classifier.blocks truth loss text"
            )
        if self.hides:
            _ = self.columns  # refuses what has no blocks

    @property
    def hides(self) -> bool:
        """Whether some columns are not seen."""
        return len(self.blocks) < len(BLOCKS)

    @property
    def k(self) -> int:
        """Top and bottom tokens behind the features: inputs = 7k + 14.

        Raises:
          InputError: there is no such k.
        """
        k, rest = divmod(self.inputs - 14, 7)
        if rest or k < 1:
            raise InputError(
                f"the attack reads {self.inputs} columns, which is 7k + 14 for no k; "
                "its features were not made by this package, or have no blocks"
            )
        return k

    @property
    def columns(self) -> Any:
        """Numbers of the columns that are seen, ascending: `[S]`, NumPy integers.

        Raises:
          InputError: some blocks are hidden, and `inputs` is 7k + 14 for no k.
        """
        # Imported here and below: flags of a command are read without NumPy.
        import numpy as np

        from lt_mia_jax.features.layout import FeatureLayout

        every = np.arange(self.inputs)
        if not self.hides:
            return every
        layout = FeatureLayout(self.k)
        own = [getattr(layout, block) for block in self.blocks]
        return np.sort(np.concatenate([every[block] for block in own]))

    def select(self, features: Any) -> Any:
        """What the classifier sees of feature vectors `"... C"` (NumPy or JAX).

        The columns of the blocks, `"... S"`, where the true token's pair is in
        log-probabilities if that is asked for; these are minus the losses.
        """
        if not self.hides:
            return features
        seen = features[..., self.columns]
        if not self.log_probabilities or "truth" not in self.blocks:
            return seen
        import jax.numpy as jnp
        import numpy as np

        from lt_mia_jax.features.layout import FeatureLayout

        xp = np if isinstance(features, np.ndarray) else jnp
        # Target's loss less the reference's: a column of its own, exact in float16.
        excess = features[..., FeatureLayout(self.k).loss.stop - 1, None]
        pair = [xp.minimum(0, -excess) + 0, xp.minimum(0, excess) + 0]
        return xp.concatenate([*pair, seen[..., 2:]], axis=-1)
