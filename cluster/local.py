"""A Ray cluster of several nodes on this machine, for trying: a head without work, and workers.

    python cluster/local.py --workers 2 --cpus 1 -- crackbatch score photos/ --out results
    python cluster/local.py --workers 2                    # prints the address, and runs until Ctrl-C

The command finds the cluster by RAY_ADDRESS. The exit code is that of the command. The nodes are real processes, but
share the cores and the memory of this machine: it shows that a run works on several nodes, not how fast it is.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="nodes beside the head")
    parser.add_argument("--cpus", type=int, default=1, help="cores that each worker offers")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that each worker offers")
    parser.add_argument("--store", type=int, default=200, help="megabytes of each node's object store")
    parser.add_argument("command", nargs="*", help="what to run on the cluster")
    arguments = parser.parse_args()
    if arguments.workers < 1 or arguments.cpus < 1:
        parser.error("--workers and --cpus must be 1 or more")
    # Only this machine reaches the cluster, and only who has the token: a cluster runs whatever it is sent.
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store(arguments)})
    try:
        for _ in range(arguments.workers):
            cluster.add_node(num_cpus=arguments.cpus, num_gpus=arguments.gpus, **store(arguments))
        sys.exit(run(arguments.command, cluster.address))
    finally:
        cluster.shutdown()


def store(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the size of a node's object store, which lies in /dev/shm."""
    return {"object_store_memory": arguments.store * 1_000_000}


def run(command: list[str], address: str) -> int:
    """Run a command on the cluster and return its exit code; without a command, wait for Ctrl-C."""
    if not command:
        print(f"RAY_ADDRESS={address} RAY_AUTH_MODE=token RAY_AUTH_TOKEN={os.environ['RAY_AUTH_TOKEN']}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        return 0
    process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address})
    for number in (signal.SIGINT, signal.SIGTERM):  # the command says what is kept; the cluster stops after it
        signal.signal(number, lambda received, _: process.send_signal(received))
    return process.wait()


if __name__ == "__main__":
    main()
