"""How the suite runs: threads, disk, order and processes."""

import os

# One thread, of the processes that tests start too: networks so small that threads only wait.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

# No test cuts the power, and what a killed process wrote stays in the kernel: a disk need not be
# waited for thousands of times.
os.fsync = lambda file: None


# The longest ones first, so that no core waits for the last file of another.
LONGEST = ("sweep", "notebooks", "demos", "lifelong", "bench", "report", "distributed", "shrink")


def pytest_collection_modifyitems(items):
    place = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_xdist_auto_num_workers():
    """One more than cores, for a test that waits for another process leaves its core idle."""
    ours = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return min(len(ours) + 1, 8)
