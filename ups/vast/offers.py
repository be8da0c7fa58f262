"""What to rent: the wishes as Vast's query, and the offers that it answers with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from ups import PROJECT_DIR
from ups.config import Model
from ups.errors import VastError
from ups.vast import DISK_GB, GPU_RAM_GB, INET_MBPS, RELIABILITY, tool

NotNegative = Annotated[float, Field(ge=0)]


def locked_versions(lock: Path = PROJECT_DIR / "constraints.txt") -> dict[str, str]:
    """Package → version, of the packages that decide which image and driver will do."""
    pins = dict(re.findall(r"^([\w-]+)==([^ ;\n]+)", lock.read_text(), flags=re.M))
    return {name: pins[name] for name in ("torch", "cuda-toolkit", "nvidia-cudnn-cu13")}


def default_cuda() -> str:
    """The CUDA version that the locked torch is built for, such as `13.0`."""
    return ".".join(locked_versions()["cuda-toolkit"].split(".")[:2])


def default_image() -> str:
    """PyTorch's own image with the locked torch, so that the machine downloads no second one."""
    versions = locked_versions()
    cudnn = versions["nvidia-cudnn-cu13"].partition(".")[0]
    return f"pytorch/pytorch:{versions['torch']}-cuda{default_cuda()}-cudnn{cudnn}-runtime"


class Wishes(Model):
    """One GPU on a machine that fits; Vast itself leaves out what is not verified or not free.

    Attributes:
        gpu_name: as Vast writes it, such as `RTX 4090`; None: any.
        gpu_ram_gb, disk_gb: at least.
        max_price: dollars per hour, the disk included; None: any.
        reliability: Vast's score of the host, 0 to 1.
        inet_mbps: download rate, at least.
        cuda: the version that the driver can serve, at least; default: what the locked torch needs.
    """

    gpu_name: str | None = None
    gpu_ram_gb: NotNegative = GPU_RAM_GB
    disk_gb: Annotated[float, Field(gt=0)] = DISK_GB
    max_price: NotNegative | None = None
    reliability: Annotated[float, Field(ge=0, le=1)] = RELIABILITY
    inet_mbps: NotNegative = INET_MBPS
    cuda: str = Field(default_factory=default_cuda, pattern=r"^\d+\.\d+$")

    @field_validator("gpu_name")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]*", name):
            raise ValueError("expected letters, digits, spaces and dashes, such as RTX 4090")
        return name

    def query(self) -> str:
        """The conditions in Vast's language."""
        conditions = [
            "num_gpus=1",
            f"gpu_ram>={self.gpu_ram_gb:g}",
            f"disk_space>={self.disk_gb:g}",
            f"inet_down>={self.inet_mbps:g}",
            f"reliability>={self.reliability:g}",
            f"cuda_vers>={self.cuda}",
            "direct_port_count>=1",
        ]
        if self.gpu_name is not None:
            conditions.append(f"gpu_name={self.gpu_name.replace(' ', '_')}")
        if self.max_price is not None:
            conditions.append(f"dph_total<={self.max_price:g}")
        return " ".join(conditions)

    def command(self, limit: int) -> list[str]:
        """Arguments of `vastai`, the cheapest first; `--raw` comes on top."""
        search = ["search", "offers", self.query(), "--order", "dph_total"]
        return [*search, "--limit", str(limit), "--storage", f"{self.disk_gb:g}"]


class Offer(Model):
    """The part of an offer that is looked at; what Vast leaves out is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    gpu_name: str
    dph_total: float
    gpu_ram: float | None = Field(None, description="MB")
    reliability: float | None = None
    inet_down: float | None = Field(None, description="Mbit/s")
    disk_space: float | None = Field(None, description="GB")
    cuda_max_good: float | None = None
    geolocation: str | None = None


def search(wishes: Wishes, limit: int) -> list[Offer]:
    """Up to `limit` offers, the cheapest first.

    Raises:
        VastError: the tool is missing or fails, or its answer is not a list of offers.
    """
    return _offers(tool.ask(*wishes.command(limit)))


def find(number: int, disk_gb: float) -> Offer | None:
    """The offer of this id, at its price with that disk; None if Vast shows it no more.

    Raises:
        VastError: as for `search`.
    """
    # No defaults: whoever names an offer may want a machine that is not verified.
    command = ["search", "offers", f"id={number}", "--no-default", "--limit", "1"]
    found = _offers(tool.ask(*command, "--storage", f"{disk_gb:g}"))
    return next((offer for offer in found if offer.id == number), None)


def _offers(found: Any) -> list[Offer]:
    try:
        if not isinstance(found, list):
            raise TypeError(f"found {type(found).__name__}, expected a list")
        return [Offer.model_validate(offer) for offer in found]
    except (TypeError, ValidationError) as error:
        raise VastError(f"`vastai search offers` answered something else: {error}") from None
