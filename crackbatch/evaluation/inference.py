"""Logits of labelled images, by the forward pass that scoring uses: in this process, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa

from crackbatch import cluster
from crackbatch.capacity import Capacity
from crackbatch.cluster import IO_CPUS, Cluster, Seen, cause_of
from crackbatch.datasets.pixels import Pixels, stream_pixels
from crackbatch.errors import RunError
from crackbatch.machine import num_cores
from crackbatch.models.bundle import Bundle
from crackbatch.models.model import Model, one_thread_each

# A task that died with its node is started again this often.
_MAX_RETRIES = 3


def logits_here(blocks: Iterable[Pixels], model: Model) -> np.ndarray:
    """Return the logits (images,) float32 of decoded images; on CPUs each core runs batches of its own."""
    logits = [np.empty(0, np.float32)]
    num_threads = num_cores() if model.device.type == "cpu" else 1
    with one_thread_each(), ThreadPoolExecutor(num_threads, thread_name_prefix="predict") as threads:
        for block in blocks:
            size = model.batch_size
            batches = [block.images[start : start + size] for start in range(0, len(block), size)]
            logits.extend(threads.map(model.logits, batches))
    return np.concatenate(logits)


def logits_on_ray(
    rows: pa.Table, bundle: Bundle, weights: bytes, address: str | None, roots: Sequence[str]
) -> np.ndarray:
    """Return the logits (images,) float32 of numbered rows, scored by a task on each GPU, or on each node without GPUs.

    `roots` are the local folders that hold the images. Raises RunError if a task fails.
    """
    import ray

    with Cluster(address) as ours:
        ours.start()
        with Capacity().asked_of(ours, 1):
            nodes = ours.node_resources()
            num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
            num_tasks = num_gpus or sum(node.get("CPU", 0) >= 1 for node in nodes)
            device = cluster.GPU_DEVICE if num_gpus else "cpu"
            task = ray.remote(_logits).options(
                num_gpus=min(num_gpus, 1),
                num_cpus=0 if num_gpus else IO_CPUS,
                max_retries=_MAX_RETRIES,
                scheduling_strategy="SPREAD",
            )
            seen, model = Seen.from_here(roots), ray.put((bundle, weights))
            bounds = np.linspace(0, rows.num_rows, num_tasks + 1).astype(int)
            parts = [rows.slice(start, stop - start) for start, stop in pairwise(bounds)]
            try:
                found = ray.get([task.remote(part, model, device, seen) for part in parts])
            except ray.exceptions.RayError as error:
                raise RunError(f"scoring on the cluster stopped ({cause_of(error)}); run again") from None
    return np.concatenate([np.empty(0, np.float32), *found])


def _logits(rows: pa.Table, model: tuple[Bundle, bytes], device: str, seen: Seen) -> np.ndarray:
    seen.check()
    return logits_here(stream_pixels(rows, model[0].input_size), Model(*model, device))
