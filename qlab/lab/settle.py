"""What each worker process does first. In a module of its own: only who has a cluster needs distributed imported."""

from __future__ import annotations

import importlib
import os
import threading

from distributed import Worker, WorkerPlugin

NICE = 10


class Settle(WorkerPlugin):
    """Give way to the app, and load torch while there is nothing else to do. A plugin reaches respawned workers too."""

    name = "qlab-settle"

    def setup(self, worker: Worker) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        threading.Thread(target=importlib.import_module, args=("torch",), name="load-torch", daemon=True).start()
