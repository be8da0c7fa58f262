"""The settings of each kind of operator: `operator.kind` names its file in `ups/models/`.

To add a kind, write its settings here, name them in `OPERATORS`, and put its model, called
`Operator`, into `ups/models/<kind>.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import Discriminator, Field, FiniteFloat, Tag

from ups.config.data import Model, Positive
from ups.errors import MissingExtra


class OperatorSettings(Model):
    """What every kind has.

    Attributes:
        history: the frames that a step is told, the last of which it advances.
        on_grid: whether the model is one of the field itself, so that `encoder.kind` is identity.
        library: what it needs beside the project's own dependencies; the extra has its name.
    """

    on_grid: ClassVar[bool] = False
    library: ClassVar[str | None] = None

    kind: str
    history: Positive = Field(1, description="frames, one operator step apart, that a step reads")

    def faults(self, tokens: int, dim: int) -> list[str]:  # noqa: ARG002 (each kind has its own)
        """Lines, each with its key, about what does not go with `tokens` tokens of `dim`."""
        return []

    def require_library(self) -> None:
        """Look for its library, without importing it.

        Raises:
            MissingExtra: it is not installed.
        """
        if self.library is not None and importlib.util.find_spec(self.library) is None:
            raise MissingExtra(
                f"operator.kind: found {self.kind}, which needs {self.library}, and that is not "
                f"installed: pip install -e '.[{self.library}]'"
            )


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

    on_grid: ClassVar[bool] = True
    library: ClassVar[str | None] = "neuralop"

    kind: Literal["fno"] = "fno"
    width: Positive = Field(20, description="channels")
    modes: Positive = Field(12, description="Fourier modes that are kept, the mean among them")
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

    on_grid: ClassVar[bool] = True

    kind: Literal["unet"] = "unet"
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


def one_of(kinds: Mapping[str, type[OperatorSettings]]) -> Any:
    """The type of a section that holds the settings of one of these kinds."""
    tagged = tuple(Annotated[model, Tag(kind)] for kind, model in kinds.items())
    return Annotated[Union[tagged], Discriminator(_kind)]  # noqa: UP007 (made of a tuple)


if TYPE_CHECKING:
    Operator: TypeAlias = OperatorSettings
else:
    Operator = one_of(OPERATORS)
