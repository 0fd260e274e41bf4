"""The command `matmix`, light enough to hear Ctrl-C while the library is imported, which takes seconds."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Import the command line, and run it. A signal before it runs, or when it has ended, ends the process at once: its
    exit status is that of a shell (130 after Ctrl-C, 129 when the terminal was closed), and there is no traceback."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    from matmix.experiments.cli import main as command

    command()


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
