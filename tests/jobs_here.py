"""Jobs carried out in the process of the test, as a worker carries them out."""

import importlib
import json

from qlab.lab.store import Run, Store
from qlab.lab.tasks import KINDS
from qlab.lab.work import Work, carry_out


def carry(store: Store, kind: str, **arguments) -> Run:
    """Describes, stores and carries out a job of this kind; gives its run. Raises what the job raises."""
    row = KINDS[kind].describe(store, arguments)
    run_id = store.create_run(kind=kind, **row.columns)
    assert store.start(run_id)
    module, function = KINDS[kind].target.split(":")
    carry_out(getattr(importlib.import_module(module), function), Work(store, run_id), json.loads(json.dumps(row.spec)))
    return store.get_run(run_id)
