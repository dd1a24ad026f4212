"""One thread for the whole suite: its networks are so small that threads only wait."""

import torch

torch.set_num_threads(1)
