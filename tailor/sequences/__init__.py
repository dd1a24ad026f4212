"""Sequences of tasks, one per file: ``tailor lifelong --sequence NAME``.

A file holds ``TITLE``, ``RECIPE`` (``tailor.sequence.Defaults``: what its authors trained with) and
``tasks(root, *, download) -> tuple[str, ...]``, the specs of its tasks in order.
"""
