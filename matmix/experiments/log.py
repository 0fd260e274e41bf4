"""The log of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from matmix.experiments.checkpoint import sync_folder, write_file


class Log:
    """`metrics.jsonl`: one JSON object a line. Lines after `step` belong to a future that a resumed run redoes."""

    def __init__(self, path: Path, step: int, *, write: bool) -> None:
        self.file = None
        if not write:
            return
        kept = b""
        if path.exists():
            lines = (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
            past = (line for line in lines if json.loads(line)["step"] <= step and b'"test"' not in line)
            kept = b"".join(past) if step else b""
        write_file(path, kept)
        self.file = open(path, "ab")  # noqa: SIM115  (closed with the object)

    def write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(line).encode() + b"\n")
            self.file.flush()

    def flush(self) -> None:
        if self.file is not None:
            os.fsync(self.file.fileno())
            sync_folder(Path(self.file.name).parent)
