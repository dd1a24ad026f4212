"""``python -m tailor`` is the ``tailor`` command; ``torchrun -m tailor`` needs it."""

from tailor.cli import entry

if __name__ == "__main__":
    entry()
