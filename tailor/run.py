"""A run directory: what was asked, how it went, and where it stands, through any crash.

    run.json              the command, as JSON; a directory belongs to one command
    log.jsonl             one JSON object per line: training steps and epochs
    tensorboard/          the same for TensorBoard
    last.safetensors      checkpoint to resume from
    best.safetensors      the task's tensors at the best validation metric
    student.safetensors   the task's tensors in the end
    result.json           the outcome; written last, so its presence means "finished"
    latency.json          measured later, where somebody asked: milliseconds of one image
    worth-SPLIT.json      likewise: what each delta, block or proxy is worth

Every file is written beside its place, fsync'ed and renamed, so that a reader sees the old or the
new one and never half of either. Tensors carry a checksum. Nothing is pickled. Left out: what to
train (``train.py``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tailor.errors import BadInput

SCHEMA = 1
# These may differ when a command is repeated: they say where it runs, not what it computes.
_WHERE = ("device", "root", "download", "workers", "memory_gb", "cache")
PLACE = (*_WHERE, "checkpoint_seconds", "log_every")
BASIS = "basis.safetensors"  # beside compressed runs: what their adapters share
SEQUENCE = "sequence.json"  # what a folder says that holds the runs of a sequence of tasks
MATRIX = "matrix.json"  # beside it, once the first task is learned: how good every task was
MATRIX_REMEDY = (  # where that is damaged
    "delete it and repeat the `tailor lifelong` command, which measures again what is learned"
)
LATENCY = "latency.json"  # of a finished run: what `tailor evaluate --latency` measured
MOVABLE = ("run", "teacher")  # other runs that this one started from; folders may be moved together
PART = ".part"  # ends the name of a file that is still being written


class Unwritable(BadInput):
    """Nothing can be written there; what was written before is intact."""


class InUse(BadInput):
    """Another process writes to this run directory."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into ``Unwritable``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unwritable(
                f"no space left to write {path}: free some and repeat the command; "
                f"what was written before is intact"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Unwritable(
                f"no permission to write {path}: choose another --out or change its mode"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise Unwritable(
                f"cannot write {path}: a part of that path is a file; choose another --out"
            ) from error
        raise Unwritable(f"cannot write {path} ({error.strerror}); choose another --out") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` at once, or leave it untouched.

    Raises:
        BadInput: no space or no permission.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # O_EXCL and the umask's mode: tempfile would make it 0600 and lock out others.
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; not-a-number becomes null."""
    write_bytes(path, (json.dumps(_finite(value), indent=1) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def read_json(path: Path) -> Any:
    """Read JSON; ``BadInput`` names the file where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); restore it or delete the run") from error


def read_object(path: Path) -> dict[str, Any]:
    """``read_json`` of a file that holds an object; ``BadInput`` names it where it holds none."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no JSON object; restore it or delete the run")
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Any = None) -> None:
    """Write tensors as safetensors, atomically; ``about`` is kept as JSON in the header."""
    plain: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, as those of tied layers do
        plain[name] = own.clone() if place in stored else own
        stored.add(place)
    # One key, because safetensors writes several in random order: same tensors, same bytes.
    header = {"about": about, "sha256": _checksum(plain, about)}
    write_bytes(path, save(plain, {"tailor": json.dumps(header)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and ``about`` of a file written by ``write_tensors``.

    Raises:
        BadInput: the file is missing or damaged, be it by a single bit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        about = header.get("about")
        if header.get("sha256") != _checksum(tensors, about):
            raise ValueError("its checksum differs from its content")
        return tensors, about
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInput(
            f"{path} is missing or damaged ({error}); restore it, or delete the run and repeat it"
        ) from error


def read_about(path: Path) -> Any:
    """``about`` of a file written by ``write_tensors``, not verified; None if it has none."""
    try:
        with safe_open(path, framework="pt") as file:
            return _header(file).get("about")
    except (OSError, SafetensorError, ValueError):
        return None


def _header(file: Any) -> dict[str, Any]:
    """What ``write_tensors`` left beside the tensors of an open file."""
    found = json.loads((file.metadata() or {}).get("tailor", "{}"))
    if not isinstance(found, dict):
        raise ValueError("its header is no JSON object")
    return found


def _checksum(tensors: Mapping[str, Tensor], about: Any) -> str:
    """SHA-256 over everything that is read back; safetensors itself has none."""
    digest = hashlib.sha256(json.dumps(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def made_by() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"torch": str(torch.__version__)}
    for package in ("tailor-vision", "timm", "torchvision", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class Run:
    """One open run directory, locked against a second writer.

    Args:
        path: the directory; made where it is missing.
        verb: ``teach``, ``adapt``, ``prune`` or ``retrain``.
        config: everything that the command said, JSON-able.
        command: the command line, for the report.
        writer: False for a process that only follows the one that writes.
        record: the file that says whose directory it is.

    Raises:
        BadInput: the directory belongs to another command, is in use, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        verb: str,
        config: dict[str, Any],
        command: str = "",
        *,
        writer: bool = True,
        record: str = "run.json",
    ) -> None:
        self.path, self.writer = Path(path), writer
        self._lock: IO[str] | None = None
        if not writer:
            return
        asked = json.loads(json.dumps(config))
        known = self.path / record
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Looked at before the lock is made: a stranger's folder stays as it was.
            others = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if others and not known.exists():
                raise BadInput(
                    f"{self.path} is no run directory but holds {others[0]!r}; "
                    f"choose an empty or new --out"
                )
            self._lock = _lock(self.path)
        try:
            self._claim(known, verb, asked, command)
        except BaseException:
            self.close()
            raise

    def _claim(self, known: Path, verb: str, asked: dict[str, Any], command: str) -> None:
        if known.exists():
            belongs_to(self.path, read_object(known), verb, asked)
        else:
            about = {"schema": SCHEMA, "verb": verb, "config": asked, "command": command}
            write_json(known, about | {"made_by": made_by()})
        # What a killed process left behind; nobody else writes here, for the lock is ours.
        leftovers = [*self.path.glob(f".*{PART}")]
        if (self.path / "result.json").exists():
            leftovers += [self.path / "last.safetensors", self.path / "best.safetensors"]
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the directory free for the next writer."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def result(self) -> dict[str, Any] | None:
        """The outcome of a finished run, None before."""
        path = self.path / "result.json"
        return read_object(path) if path.exists() else None

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the last checkpoint, None where there is none."""
        path = self.path / "last.safetensors"
        if not path.exists():
            return None
        tensors, about = read_tensors(path)
        return tensors, dict(about)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if not self.writer:
            return
        path = self.path / "log.jsonl"
        with writing(path), path.open("a") as file:
            file.write(json.dumps(_finite(record)) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Forget what was logged of ``stage`` after ``step``: it will be computed again."""
        path = self.path / "log.jsonl"
        if not (self.writer and path.exists()):
            return
        kept = [
            r for r in read_log(path) if r.get("stage") != stage or int(r.get("step", 0)) <= step
        ]
        write_bytes(path, "".join(json.dumps(r) + "\n" for r in kept).encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a crash cut short is left out."""
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def belongs_to(path: Path, found: dict[str, Any], verb: str, asked: dict[str, Any]) -> None:
    """Refuse a directory that another command made, naming what differs."""
    if found.get("schema") != SCHEMA:
        raise BadInput(
            f"{path} was written by another version of tailor (schema {found.get('schema')}); "
            f"choose another --out"
        )
    if found.get("verb") != verb:
        raise BadInput(
            f"{path} belongs to another command (`tailor {found.get('verb')}`, "
            f"not `tailor {verb}`); choose another --out"
        )
    before, now = _flat(found.get("config", {})), _flat(asked)
    # Runs of before 0.2 do not say which images they saw.
    if before.get("images", now.get("images")) != now.get("images"):
        raise BadInput(
            f"{path} was started with other images or labels of {now.get('data.task')}; put them "
            f"back as they were, or choose another --out"
        )
    before.pop("images", None)
    now.pop("images", None)
    changed = sorted(
        k
        for k in before.keys() | now.keys()
        if before.get(k) != now.get(k)
        and k.rpartition(".")[2] not in PLACE
        and not (k in MOVABLE and _moved(before.get(k), now.get(k)))
    )
    derived = ("classes", "fingerprint")  # they follow from what else changed
    if changed := [k for k in changed if k not in derived] or changed:
        said = ", ".join(
            f"{k}: {_short(before.get(k))} there, {_short(now.get(k))} now" for k in changed[:3]
        )
        raise BadInput(
            f"{path} belongs to another command ({said}); repeat it as it was, "
            f"or choose another --out"
        )


def _moved(before: Any, now: Any) -> bool:
    """Whether a run has gone from where it was, and one of the same name is named now."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    return not Path(before).exists() and Path(before).name == Path(now).name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _lock(path: Path) -> IO[str]:
    """Hold the directory for this process; the system lets go of it when the process ends."""
    file = (path / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InUse(
            f"{path} is in use by another process; wait for it or choose another --out"
        ) from error
    return file
