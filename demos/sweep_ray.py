"""A sweep as Ray jobs: as many workers as the cluster has room for, each a task with one GPU.

python -m demos.sweep_ray 8 --task svhn --lam 0.1 0.3 1 --storage postgresql://... --out runs/sweep

The first number says how many workers to start; everything after it goes to ``tailor sweep`` as it
is. Ray (``pip install ray``) only places the workers; what is done and what is lost is the
database's affair, so that a node may vanish. ``--gpus 0`` as the first option is for machines
without one.
"""

from __future__ import annotations

import subprocess
import sys

USAGE = "usage: python -m demos.sweep_ray WORKERS [--gpus N] OPTIONS-OF-TAILOR-SWEEP"


def work(args: list[str]) -> int:
    """One worker: a process of its own, so that no state is shared with Ray's."""
    return subprocess.run([sys.executable, "-m", "tailor", "sweep", *args]).returncode


def main(argv: list[str]) -> int:
    """Start the workers and wait; the largest exit code of all."""
    if not argv or not argv[0].isdigit() or int(argv[0]) < 1:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        import ray
    except ImportError:
        print("demos.sweep_ray needs Ray: pip install ray", file=sys.stderr)
        return 2
    count, args, gpus = int(argv[0]), argv[1:], 1.0
    if args[:1] == ["--gpus"]:
        gpus, args = float(args[1]), args[2:]
    ray.init()
    # Ray's own retries are for nodes that vanish: the new worker takes what is left.
    worker = ray.remote(num_gpus=gpus, max_retries=3)(work)
    return max(ray.get([worker.remote(args) for _ in range(count)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
