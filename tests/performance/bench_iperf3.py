"""iperf3 in both directions, out of a network namespace and out of a guest: our stack beside passt, pasta,
slirp4netns and QEMU's user networking.

    python tests/performance/bench_iperf3.py [--seconds 2] [--mtu 1500,65520]

What is missing of them is installed if it can be (`scripts/need`), and left out if not.
"""

from __future__ import annotations

import subprocess
import sys

import bench_guest_network
import bench_network
from network_contest import IPERF3, ROOT

NEEDED = (IPERF3, "passt", "slirp4netns")


def main(arguments: list[str]) -> int:
    """Both benchmarks with this load alone."""
    subprocess.run([ROOT / "scripts" / "need", *(f"{name}={name}" for name in NEEDED)], check=False)
    for benchmark in (bench_network, bench_guest_network):
        benchmark.main([*arguments, "--load", IPERF3])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
