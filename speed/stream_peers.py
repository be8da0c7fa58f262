"""What is taken instead of the streaming start: a process from its start to its first step.

    PYTHON -m speed.stream_peers SPEC      SPEC: `Spec` as JSON

boto3 + h5py runs in the project's environment, LitData and Mosaic Streaming in the peers'. What was
found is written into a file: when the first step was done (Unix time), and, of a whole epoch, the
seconds until its end in which there was no step to compute.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

TOKENS, WIDTH, HIDDEN, NUM_BLOCKS = 16, 64, 128, 4
NUM_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Spec:
    """What to train on, and how far.

    Attributes:
        kind: a key of `LOADERS`.
        prefix: of the bucket, below which the data lie.
        folder: an empty one, for what is downloaded.
        field: the name of a trajectory's frames in the converted copies.
        num_points: of a frame.
        stride: between the frames that are trained on.
        batch_size: trajectories.
        started_at: Unix time at which the process was started.
        is_whole_epoch: go on to the end of epoch 1.
        found: the file to write.
    """

    kind: str
    bucket: str
    prefix: str
    folder: str
    field: str
    num_points: int
    stride: int
    batch_size: int
    started_at: float
    is_whole_epoch: bool
    found: str


class PatchNet(nn.Module):
    """A frame (B, X) from one that is a stride earlier, by convolutions over patches.

    The width, the tokens and, to a tenth, the parameters of the config's operator.
    """

    def __init__(self, num_points: int) -> None:
        super().__init__()
        patch = num_points // TOKENS
        self.embed = nn.Conv1d(1, WIDTH, patch, stride=patch)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, WIDTH),
                nn.Conv1d(WIDTH, HIDDEN, 3, padding=1, padding_mode="circular"),
                nn.GELU(),
                nn.Conv1d(HIDDEN, WIDTH, 1),
            )
            for _ in range(NUM_BLOCKS)
        )
        self.head = nn.ConvTranspose1d(WIDTH, 1, patch, stride=patch)

    def forward(self, u_BX: Tensor) -> Tensor:
        x = self.embed(u_BX.unsqueeze(1))
        for block in self.blocks:
            x = x + block(x)
        update: Tensor = self.head(x).squeeze(1)
        return u_BX + update


class Trajectories(Dataset[Tensor]):
    """The trajectories of a file in PDEBench's layout; each worker opens it for itself."""

    def __init__(self, path: str) -> None:
        self._path, self._tensor = path, None
        with importlib.import_module("h5py").File(path) as file:
            self._num = len(file["tensor"])

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, i: int) -> Any:
        if self._tensor is None:
            self._tensor = importlib.import_module("h5py").File(self._path)["tensor"]
        return self._tensor[i]


def boto3_h5py(spec: Spec) -> Iterable[Tensor]:
    boto3 = importlib.import_module("boto3")
    path = os.path.join(spec.folder, "train.h5")
    boto3.client("s3").download_file(spec.bucket, f"{spec.prefix}/train.h5", path)
    return _loader(spec, Trajectories(path), lambda frames: frames, shuffle=True)


def litdata(spec: Spec) -> Iterable[Tensor]:
    module = importlib.import_module("litdata")
    # It has no option of its own for a store without TLS, as a loopback one is.
    downloader = importlib.import_module("litdata.streaming.downloader")
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    remote = f"s3://{spec.bucket}/{spec.prefix}/litdata"
    dataset = module.StreamingDataset(remote, cache_dir=spec.folder, shuffle=True)
    make = module.StreamingDataLoader
    return _loader(spec, dataset, lambda sample: sample[spec.field], make=make)


def mosaic(spec: Spec) -> Iterable[Tensor]:
    importlib.import_module("speed.peer_formats")  # it makes `streaming` importable
    module = importlib.import_module("streaming")
    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    dataset = module.StreamingDataset(
        remote=f"s3://{spec.bucket}/{spec.prefix}/mosaic",
        local=spec.folder,
        shuffle=True,
        batch_size=spec.batch_size,
    )
    return _loader(spec, dataset, lambda sample: sample[spec.field])


LOADERS = {"boto3": boto3_h5py, "litdata": litdata, "mosaic": mosaic}


def _loader(
    spec: Spec,
    dataset: Any,
    frames_of: Callable[[Any], Any],
    make: Callable[..., Iterable[Tensor]] = DataLoader,
    **options: Any,
) -> Iterable[Tensor]:
    """Batches of trajectories (B, T', X), the stride taken by the workers."""

    def collate(samples: Sequence[Any]) -> Tensor:
        return torch.stack([torch.as_tensor(frames_of(s))[:: spec.stride] for s in samples])

    options |= {"num_workers": NUM_WORKERS, "collate_fn": collate}
    return make(dataset, batch_size=spec.batch_size, **options)


def train(spec: Spec) -> dict[str, float | None]:
    """Train one step, or one epoch."""
    torch.set_num_threads(1)  # steps so small are slower with two
    batches = LOADERS[spec.kind](spec)
    model = PatchNet(spec.num_points)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    began, waited_s, first_step_at = time.time(), 0.0, None
    asked = time.perf_counter()
    for u_BTX in batches:
        waited_s += time.perf_counter() - asked
        u_BX, next_BX = u_BTX[:, :-1].flatten(0, 1), u_BTX[:, 1:].flatten(0, 1)
        loss = (model(u_BX) - next_BX).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if first_step_at is None:
            first_step_at = time.time()
            if not spec.is_whole_epoch:
                break
        asked = time.perf_counter()
    idle_s = began - spec.started_at + waited_s if spec.is_whole_epoch else None
    return {"first_step_at": first_step_at, "idle_s": idle_s, "waited_s": waited_s}


def main(arguments: list[str]) -> None:
    spec = Spec(**json.loads(arguments[0]))
    found = json.dumps(train(spec))
    aside = Path(spec.found).with_suffix(".part")
    aside.write_text(found)
    aside.replace(spec.found)


if __name__ == "__main__":
    main(sys.argv[1:])
