"""One thread a test process: the tests run in as many processes as there are cores."""

import os

# Before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
