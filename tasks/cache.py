"""Build the latent cache, or find it: a task whose Prefect cache key is the config hash."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecordMetadata
from prefect.states import Cancelled, State
from prefect.transactions import IsolationLevel

from tasks.locks import FlockManager
from tasks.timeline import phase_task, watch
from ups.config import ProblemConfig, RunConfig
from ups.data.sources import Staged
from ups.errors import UpsError
from ups.progress import logged

if TYPE_CHECKING:
    from ups.latents.parts import Spread
    from ups.latents.pulled_stream import PulledStream
    from ups.latents.stream import Stream

KEY_PREFIX = "latents-"


class ValidEntries(LocalFileSystem):
    """Prefect's records of cached results, read only while the entry that they name is valid.

    A hit skips the task, so this is where a deleted or truncated entry must turn into a miss.
    """

    _block_type_slug = "valid-latent-entries"

    def read_path(self, path: str, _sync: bool = True) -> bytes:
        from ups.latents.build import CacheEntry
        from ups.latents.store import check_cache_valid

        prefect_dir = Path(self.basepath or ".").parent
        cache_dir, config_hash = prefect_dir.parent, path.rpartition("-")[2]
        content = super().read_path(path, _sync=True)
        if not check_cache_valid(cache_dir, config_hash):
            raise ValueError(f"the latent cache entry {config_hash} is not valid any more")
        storage_key = ResultRecordMetadata.load_bytes(content).storage_key or ""
        result = prefect_dir / "results" / storage_key
        if prefect_dir not in result.parents:
            raise ValueError(f"the result of {path} is of another cache directory")
        CacheEntry.model_validate_json(result.read_bytes())
        return content

    async def aread_path(self, path: str) -> bytes:
        return self.read_path(path)


@phase_task("cache")
def build_latent_cache(
    config: ProblemConfig,
    sources: Mapping[str, Sequence[Staged]],
    key: str,  # noqa: ARG001 (what Prefect's cache key is made of)
    overwrite: bool,
    keep: Sequence[str],
    stop: threading.Event,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Build the entry, or find it; its record as plain JSON, paths relative to the cache directory.

    Args:
        keep: generations of the other problems' entries, which no budget removes.
        spread: how a cluster encodes, where the config has one do it.
    """
    from ups.pipeline.phases import build_cache

    progress = logged("encoded", "trajectories")
    entry = build_cache(
        config, sources, overwrite=overwrite, keep=keep, stop=stop, progress=progress, spread=spread
    )
    return entry.model_dump(mode="json")


@phase_task("cache")
def follow_latent_cache(
    stream: Stream | PulledStream,
    problem: str,
    key: str,  # noqa: ARG001 (what Prefect's cache key is made of)
) -> dict[str, Any] | State[None]:
    """Wait for the entry that is built, or pulled, of what arrives; its record as plain JSON.

    Or Cancelled where that ended with an error, which the training says.
    """
    try:
        return stream.result()[problem].model_dump(mode="json")
    except UpsError as error:
        return Cancelled(message=f"the training says why: {type(error).__name__}")


def cache_task(
    config: RunConfig,
    key: str,
    *,
    overwrite: bool,
    reused: bool,
    pulled: bool = False,
    body: Task[..., Any] = build_latent_cache,
) -> Task[..., Any]:
    """`build_latent_cache`, or another body, with key store, results and lock of this directory.

    Two cache directories never answer for each other. Legacy mode, which wipes its cache, has none,
    and neither has a cache directory that can only be read.

    Args:
        key: the config hash.
        reused, pulled: whether the entry was valid a moment ago, or comes from the shared cache;
            only the name of the task run says so.
    """
    how = " reused" if reused else " pulled" if pulled else ""
    name = f"2 build-latent-cache [{key}]{how}"
    cache_dir = config.training.latent_cache_dir
    is_read_only = cache_dir.exists() and not os.access(cache_dir, os.W_OK)
    if config.features.is_legacy or is_read_only:
        return body.with_options(task_run_name=name)
    prefect_dir = cache_dir.resolve() / ".prefect"
    policy = CacheKeyFnPolicy(cache_key_fn=_cache_key).configure(
        key_storage=ValidEntries(basepath=str(prefect_dir / "keys")),
        isolation_level=IsolationLevel.SERIALIZABLE,
        lock_manager=FlockManager(prefect_dir / "locks"),
    )
    return body.with_options(
        task_run_name=name,
        cache_policy=policy,
        persist_result=True,
        result_storage=prefect_dir / "results",
        result_serializer="json",
        refresh_cache=overwrite,
    )


def _cache_key(context: TaskRunContext, parameters: Mapping[str, Any]) -> str:
    watch("cache", context.task_run)
    return f"{KEY_PREFIX}{parameters['key']}"
