"""The log of a run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matmix.checksums import sum_of
from matmix.experiments.checkpoint import DamagedCheckpoint, sync_folder, write_file
from matmix.experiments.folder import read_metrics

if TYPE_CHECKING:
    from accelerate import Accelerator


class Log:
    """`metrics.jsonl`, one JSON object a line, and the tracker of the accelerator where it has one, which is told what
    the run is (`about`).

    Lines after `step` belong to a future that a resumed run redoes: `length` is how long the file was then, None where
    that is not known (of a checkpoint of an older version).
    """

    def __init__(
        self, path: Path, step: int, accelerator: Accelerator, about: dict[str, Any], length: int | None = None
    ) -> None:
        self.accelerator, self.file = accelerator, None
        if [str(tracker) for tracker in accelerator.log_with] == ["tensorboard"]:  # the project names its folder
            accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        elif accelerator.log_with:
            accelerator.init_trackers("matmix", config=_flat(about))
        if not accelerator.is_main_process:
            return
        kept = b""
        if length is not None:
            kept = path.read_bytes()[:length] if length else b""
        elif path.exists():
            lines = path.read_bytes().split(b"\n")[:-1] if step else []  # the last one is torn, or empty
            found = read_metrics(path.parent) if step else []
            kept = b"".join(line + b"\n" for line, said in zip(lines, found, strict=True) if _stays(said, step))
        write_file(path, kept)
        self._sum, self._length = hashlib.sha256(kept), len(kept)
        self.file = open(path, "ab")  # noqa: SIM115  (closed with the object)

    def write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            data = json.dumps(line).encode() + b"\n"
            self.file.write(data)
            self.file.flush()
            self._sum.update(data)
            self._length += len(data)
        if self.accelerator.trackers:
            split = line["split"]
            values = {f"{split}/{name}": value for name, value in line.items() if name not in ("step", "split")}
            self.accelerator.log(values, step=line["step"])

    def state(self) -> dict[str, Any]:
        """How long the file is, and its checksum; for `check_log`."""
        return {"size": self._length, "sha256": self._sum.hexdigest()}

    def flush(self) -> None:
        if self.file is not None:
            os.fsync(self.file.fileno())
            sync_folder(Path(self.file.name).parent)

    def close(self) -> None:
        """End the trackers; accelerate's own way to do it would end the process group as well."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.file is not None:
            self.file.close()


def check_log(path: Path, said: dict[str, Any]) -> None:
    """Raise `DamagedCheckpoint` where a log does not begin with what it was when `state` was asked for."""
    data = path.read_bytes() if path.exists() else b""
    if sum_of(data[: said["size"]]) != said:
        raise DamagedCheckpoint(f"{path} does not begin as it did when the checkpoint was written")


def _stays(line: dict[str, Any], step: int) -> bool:
    """Tests come after the last step and are made again."""
    return line["step"] <= step and line["split"] in ("train", "val")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as numbers and text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
