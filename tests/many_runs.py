"""A store with many runs: one is carried out, the others are copies of its row and result with figures of their own."""

import secrets
from pathlib import Path

import sqlalchemy as sa

from qlab.lab.experiment import Experiment
from qlab.lab.run import run
from qlab.lab.store import Run, Store
from qlab.lab.tables import DOCUMENTS, RUNS


def one_run(home: Path, model: str = "outlier_mlp", mapping: object = "x86", **settings) -> Run:
    """A real experiment on a sample, in this process."""
    store = Store(home)
    try:
        return run(Experiment(model, model, mapping, **settings), store=store)
    finally:
        store.close()


def fill(home: Path, count: int, model: str = "outlier_mlp") -> list[str]:
    """This many finished runs named "run 0", "run 1", …, newest first; the oldest is the one that was carried out."""
    real = one_run(home, model)
    store = Store(home)
    with store._read() as connection:
        row = dict(connection.execute(sa.select(RUNS).where(RUNS.c.id == real.id)).mappings().one())
        document = dict(connection.execute(sa.select(DOCUMENTS).where(DOCUMENTS.c.run == real.id)).mappings().one())
    rows, documents = [], []
    for i in range(count - 1):
        step = (count - i) / count
        made = {
            "id": secrets.token_hex(5), "name": f"run {i}", "created": row["created"] + count - i,
            "accuracy": row["accuracy"] * (0.7 + 0.3 * step), "size": int(row["size"] * (0.5 + 0.5 * step)),
        }  # fmt: skip
        rows.append({**row, **made})
        documents.append({**document, "run": made["id"]})
    with store._write() as connection:
        connection.execute(RUNS.insert(), rows)
        connection.execute(DOCUMENTS.insert(), documents)
    store.close()
    return [r["id"] for r in rows] + [real.id]
