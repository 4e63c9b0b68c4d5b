"""A Ray that counts a GPU which the machine does not have, and runs on it: its networks sit on the CPU.

python gpu.py FOLDER score|refuse|train    works on what is there, and prints what came of it as JSON
"""

from __future__ import annotations

import json
import sys

import ray

import crackbatch
from crackbatch import cluster
from crackbatch.errors import RunError


def score(folder: str) -> dict[str, int]:
    """Score what is in the folder."""
    cluster.GPU_DEVICE = "cpu"
    return {"scored": crackbatch.score(f"{folder}/in", f"{folder}/out", batch_size=64).added}


def refuse(folder: str) -> dict[str, str]:
    """Score with a torch that finds no GPU."""
    try:
        crackbatch.score(f"{folder}/in", f"{folder}/out")
    except RunError as error:
        return {"refused": str(error)}
    return {}


def train(folder: str) -> dict[str, int]:
    """Train on what is in the folder, and evaluate on it."""
    cluster.GPU_DEVICE = "cpu"
    crackbatch.train(f"{folder}/in", f"{folder}/model", init="none", image_size=64, batch_size=8, epochs=1, workers=1)
    found = crackbatch.evaluate(f"{folder}/in", f"{folder}/evaluation", include_seen=True, address="auto")
    return {"evaluated": found.metrics["images"]}


if __name__ == "__main__":
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    print(json.dumps({"score": score, "refuse": refuse, "train": train}[sys.argv[2]](sys.argv[1])))
