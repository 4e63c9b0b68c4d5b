"""A Ray cluster of several nodes on this machine, for trying: a head without work, and workers.

    python cluster/local.py -- bash                                     # a shell on the cluster
    python cluster/local.py --workers 2 --cpus 1 -- crackbatch score photos/ --out results
    python cluster/local.py                                             # says how to reach it; runs until Ctrl-C

The command finds the cluster by its environment, for runs and for `ray job submit`. The exit code is that of the
command. The nodes are real processes, but share the cores and the memory of this machine: it shows that a run works on
several nodes, not how fast it is.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="nodes beside the head")
    parser.add_argument("--cpus", type=int, default=1, help="cores that each worker offers")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that each worker offers")
    parser.add_argument("--store", type=int, default=200, help="megabytes of each node's object store")
    parser.add_argument("command", nargs="*", help="what to run on the cluster")
    arguments = parser.parse_args()
    if arguments.workers < 0 or arguments.cpus < 1:
        parser.error("--workers must be 0 or more, --cpus 1 or more")
    # Only this machine reaches the cluster, and only who has the token: a cluster runs whatever it is sent.
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    programs = str(Path(sys.executable).parent)  # jobs find crackbatch and ray where this Python is
    os.environ |= {
        **access,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
    }
    os.environ.pop("RAY_ADDRESS", None)
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**head, **store(arguments)})
    try:
        for _ in range(arguments.workers):
            cluster.add_node(num_cpus=arguments.cpus, num_gpus=arguments.gpus, **store(arguments))
        there = {"RAY_ADDRESS": cluster.address, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
        sys.exit(run(arguments.command, {**there, **access}))
    finally:
        cluster.shutdown()


def free_port() -> int:
    """Return a port of this machine that no server uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def store(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the size of a node's object store, which lies in /dev/shm."""
    return {"object_store_memory": arguments.store * 1_000_000}


def run(command: list[str], access: dict[str, str]) -> int:
    """Run a command on the cluster and return its exit code; without a command, wait for Ctrl-C."""
    if not command:
        print("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in access.items()), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        return 0
    process = subprocess.Popen(command, env={**os.environ, **access})
    for number in (signal.SIGINT, signal.SIGTERM):  # the command says what is kept; the cluster stops after it
        signal.signal(number, lambda received, _: process.send_signal(received))
    return process.wait()


if __name__ == "__main__":
    main()
