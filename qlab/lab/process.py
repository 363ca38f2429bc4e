"""Which process on which machine, told apart across restarts, reused process ids and containers."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    pid: int
    host: str
    boot: str  # changes when the machine restarts: a process id means nothing across it
    started: str  # of the process: the system gives the same id to another process later

    @property
    def same_machine(self) -> bool:
        return self.host == socket.gethostname() and self.boot == _boot()

    @property
    def dead(self) -> bool | None:
        """True or False on this machine; None where that cannot be known: another host, another container."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return True
        return _started(self.pid) != self.started


def this_process() -> Process:
    pid = os.getpid()
    return Process(pid=pid, host=socket.gethostname(), boot=_boot(), started=_started(pid) or "")


@lru_cache(maxsize=1)
def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))


def _started(pid: int) -> str | None:
    """When this process started; None if there is none, or only its remains."""
    if sys.platform == "linux":
        # In clock ticks since the boot. psutil's create_time goes through the wall clock and moves when that is set.
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rsplit(")", 1)[1].split()  # the name before it may hold spaces and brackets
        return None if fields[0] in "ZX" else fields[19]
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
