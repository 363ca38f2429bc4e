"""The tables of the run database."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 2
UPGRADED = (1,)  # versions whose runs only lack columns that may be empty

METADATA = sa.MetaData()

SCHEMA = sa.Table("schema_version", METADATA, sa.Column("version", sa.Integer, primary_key=True))

OWNERS = sa.Table(
    "owners",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("boot", sa.String(64), nullable=False),
    sa.Column("started", sa.String(64), nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
)

RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False, default=""),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("spec_hash", sa.String(64), nullable=False),
    sa.Column("parent", sa.String(32)),  # the sweep this run belongs to
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("data", sa.Text, nullable=False, default=""),
    sa.Column("config", sa.Text, nullable=False, default=""),
    sa.Column("model_hash", sa.String(80)),
    sa.Column("data_hash", sa.String(80)),
    # Hash of model content, data content and resolved spec: equal keys are the same computation.
    sa.Column("content_key", sa.String(64)),
    sa.Column("stage", sa.Text, nullable=False, default=""),
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("share", sa.Float, nullable=False, default=0.0),
    sa.Column("seconds_left", sa.Float),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("accuracy", sa.Float),
    sa.Column("float_accuracy", sa.Float),
    sa.Column("agreement", sa.Float),
    sa.Column("size", sa.BigInteger),
    sa.Column("float_size", sa.BigInteger),
    sa.Column("samples", sa.Integer),
    sa.Column("accuracy_low", sa.Float),
    sa.Column("accuracy_high", sa.Float),
    sa.Column("backend", sa.String(16)),  # what the figures were computed with: simulated or integer
    sa.Column("dropped", sa.Text),  # why its evaluation was ended before all samples were seen
    sa.Column("latency", sa.Float),
    sa.Column("latency_batch", sa.Integer),
    sa.Column("rival", sa.String(64)),  # artifact: evaluation it is held against while it is evaluated
    sa.Column("best", sa.String(32)),  # of a sweep: the best of its runs so far
    sa.Column("position", sa.Integer),  # in its sweep
    sa.Column("owner", sa.String(32), sa.ForeignKey("owners.id"), nullable=False),
    sa.Column("worker_pid", sa.Integer),
    sa.Column("worker_host", sa.String(255)),
    sa.Column("tags", sa.Text, nullable=False, default="[]"),
    sa.Column("notes", sa.Text, nullable=False, default=""),
    sa.Column("deleted", sa.Float),
    sa.Index("runs_by_created", "created"),
    sa.Index("runs_by_status", "status"),
    sa.Index("runs_by_parent", "parent"),
    sa.Index("runs_by_content_key", "content_key"),
)

# Apart from the row: a table of 1,000 runs is read without paging through their results.
DOCUMENTS = sa.Table(
    "run_documents",
    METADATA,
    sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("result", sa.Text),
    sa.Column("detail", sa.Text),
)

ARTIFACTS = sa.Table(
    "artifacts",
    METADATA,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("media", sa.String(128), nullable=False, default=""),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("original_name", sa.Text, nullable=False, default=""),
    sa.Column("created", sa.Float, nullable=False),
)

DERIVED = sa.Table(
    "derived",
    METADATA,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("artifact", sa.String(64), sa.ForeignKey("artifacts.hash"), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
