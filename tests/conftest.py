"""One thread a process, here and in the processes that tests start: the parts are tiny, and threads that wait for each
other on a busy machine cost more than they save. The whole suite runs in a process a core instead (pytest-xdist);
where files or tests are named, they run in this process, as with `-n 0`."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

AT_MOST = 4
"""Processes: each imports torch, and some tests hold models of full size."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Ask pytest-xdist for processes, if it is there and was told nothing. Idle ones take tests from the others."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # the last: each process would ask for more of them
    option = config.option
    if option.numprocesses is None and option.dist == "no":
        option.numprocesses, option.maxprocesses, option.dist = "logical", option.maxprocesses or AT_MOST, "worksteal"
