"""The settings of each kind of operator: `operator.kind` names its file in `ups/models/`.

To add a kind, write its settings here, name them in `OPERATORS`, and put its model, called
`Operator`, into `ups/models/<kind>.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag

from ups.config.data import Model, Positive


class OperatorSettings(Model):
    """What every kind has.

    Attributes:
        history: the frames that a step is told, the last of which it advances.
    """

    history: Positive = Field(1, description="frames, one operator step apart, that a step reads")

    def faults(self, tokens: int, dim: int) -> list[str]:  # noqa: ARG002 (each kind has its own)
        """Lines, each with its key, about what does not go with `tokens` tokens of `dim`."""
        return []


class LatentSettings(OperatorSettings):
    """What the operators on latents have.

    Attributes:
        token_kernel: a step carries the field past the next token, and embedding and head, which
            saw one token each, left it to the few blocks to find out.
        amplitude_scaling: the error counts relative to frames that decay to a third; scaled by its
            own amplitude, a small frame is as easy to advance as a large one.
        conserve_mean: what the equation conserves has not to be learned; it takes effect where
            all equations of the run conserve it.
    """

    hidden_dim: Positive = Field(128, description="channels inside")
    mlp_ratio: FiniteFloat = Field(4.0, gt=0, description="channels of a block over hidden_dim")
    token_kernel: Positive = Field(
        3, description="odd; tokens that a convolution sees, around the periodic domain"
    )
    amplitude_scaling: bool = Field(True, description="z + a·f(z/a, log a), a the frame's rms")
    conserve_mean: bool = Field(True, description="keep the mean over space, exactly")

    def faults(self, tokens: int, dim: int) -> list[str]:  # noqa: ARG002
        if self.token_kernel % 2 and self.token_kernel <= tokens:
            return []
        return [
            f"operator.token_kernel: found {self.token_kernel}, expected an odd number up to "
            f"latent.tokens ({tokens})"
        ]


class LatentTransformer(LatentSettings):
    """The U-shaped transformer over the tokens of a frame."""

    kind: Literal["latent_transformer"] = "latent_transformer"
    num_heads: Positive = 4
    depths: Annotated[list[Positive], Field(min_length=1)] = Field(
        [2, 2, 2], description="blocks per stage of the U: odd length, tokens halve per stage"
    )

    @property
    def num_levels(self) -> int:
        """Resolutions of the U: 2 for depths of length 3."""
        return len(self.depths) // 2 + 1

    def faults(self, tokens: int, dim: int) -> list[str]:
        faults = super().faults(tokens, dim)
        if len(self.depths) % 2 == 0:
            faults.append(f"operator.depths: found {self.depths}, expected an odd number of stages")
        elif tokens % 2 ** (self.num_levels - 1):
            faults.append(
                f"latent.tokens: found {tokens}, expected a multiple of "
                f"{2 ** (self.num_levels - 1)}, which operator.depths {self.depths} halves down to"
            )
        if self.hidden_dim % (2 * self.num_heads):
            faults.append(
                f"operator.hidden_dim: found {self.hidden_dim}, expected a multiple of "
                f"2 * operator.num_heads ({2 * self.num_heads})"
            )
        return faults


class LatentCNN(LatentSettings):
    """Residual blocks of circular convolutions over the tokens of a frame."""

    kind: Literal["latent_cnn"]
    hidden_dim: Positive = 64
    mlp_ratio: FiniteFloat = Field(2.0, gt=0)
    num_blocks: Positive = 3


class FNO(OperatorSettings):
    """The Fourier neural operator (Li et al. 2021), of the library `neuraloperator`.

    The defaults are those of PDEBench.
    """

    kind: Literal["fno"]
    width: Positive = Field(20, description="channels")
    modes: Positive = Field(12, description="Fourier modes that are kept")
    num_layers: Positive = 4

    def faults(self, tokens: int, dim: int) -> list[str]:
        most = tokens * dim // 2 + 1
        if self.modes <= most:
            return []
        return [f"operator.modes: found {self.modes}, expected at most {most}, those of the grid"]


class UNet(OperatorSettings):
    """The U-Net (Ronneberger et al. 2015) with circular convolutions; the defaults are PDEBench's.

    Attributes:
        num_levels: resolutions; the points halve from one to the next, the channels double.
    """

    kind: Literal["unet"]
    width: Positive = Field(32, description="channels at the finest resolution")
    num_levels: Positive = 5

    def faults(self, tokens: int, dim: int) -> list[str]:
        points, multiple = tokens * dim, 2 ** (self.num_levels - 1)
        if points % multiple == 0:
            return []
        return [
            f"operator.num_levels: found {self.num_levels}, expected the {points} points of a "
            f"frame to be a multiple of {multiple}"
        ]


OPERATORS: dict[str, type[OperatorSettings]] = {
    "latent_transformer": LatentTransformer,
    "latent_cnn": LatentCNN,
    "fno": FNO,
    "unet": UNet,
}


def _kind(given: Any) -> Any:
    """The kind that is named, or the default one."""
    if isinstance(given, dict):
        return given.get("kind", "latent_transformer")
    return getattr(given, "kind", None)


Operator = Annotated[
    Annotated[LatentTransformer, Tag("latent_transformer")]
    | Annotated[LatentCNN, Tag("latent_cnn")]
    | Annotated[FNO, Tag("fno")]
    | Annotated[UNet, Tag("unet")],
    Discriminator(_kind),
]
