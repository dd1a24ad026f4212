"""One data set per file: `FACTS` says what it is, `read(root, download=...)` opens it.

Adding a data set is adding a file here; its name becomes the task's name. `read` returns a
`tailor.task.Task` with "train" and, where the data set has them, "val" and "test".
Files that begin with an underscore read what users bring (`folder:PATH`, `npz:PATH`) or
what torchvision knows (`torchvision:CLASS`).
"""
