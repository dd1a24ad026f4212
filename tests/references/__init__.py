"""Independent re-statements of published programs, to compare ours with."""
