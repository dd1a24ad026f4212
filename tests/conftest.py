"""One thread for the whole suite: its networks are so small that threads only wait."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too

import torch  # noqa: E402

torch.set_num_threads(1)
