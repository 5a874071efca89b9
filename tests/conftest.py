"""One thread a process, here and in the processes that tests start: the parts are tiny, and threads that wait for each
other on a busy machine cost more than they save. Full-size tests ask for more themselves."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
