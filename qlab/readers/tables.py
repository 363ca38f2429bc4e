"""Tables: numeric columns are the features, one column may hold labels. pandas and pyarrow load on first use."""

import csv
import io
import re
from typing import Any

import numpy as np

from qlab.errors import BadUpload
from qlab.readers.common import Limits, check_unpacked, listed, parsing, size_text

TARGET_NAMES = frozenset({"y", "targets", "target", "labels", "label"})
TABLE_TARGET_NAMES = TARGET_NAMES | {"class"}

_ENCODE = "Encode it as numbers or leave it out; only a column of labels may hold text."


def read_csv(data: bytes, label: str, limits: Limits, labels: str | None = None) -> dict[str, np.ndarray]:
    import pandas as pd

    if b"\0" in data:
        raise BadUpload(f"{label} is not UTF-8 text: it holds zero bytes. Save the table as CSV in UTF-8.")
    head = data[: limits.max_header_bytes].decode("utf-8-sig", errors="replace").lstrip("\r\n")
    line = re.match(r"[^\r\n]*", head)
    separator = max(",;\t", key=line[0].count if line else head.count)
    with parsing(label, "a CSV table"):
        lines = csv.reader(io.StringIO(head, newline=""), delimiter=separator, skipinitialspace=True)
        top = [fields for fields, _ in zip((fields for fields in lines if fields), range(2), strict=False)]
    fields = top[0] if top else []
    rows = max(data.count(b"\n"), data.count(b"\r")) + 1
    _check_table(rows, len(fields), label, limits)
    has_header = not all(_is_number(field) for field in fields)
    with parsing(label, "a CSV table"):
        frame = pd.read_csv(
            io.BytesIO(data), sep=separator, header=0 if has_header else None, low_memory=False, encoding="utf-8-sig",
            # Only an empty field and NaN count as missing: "NA" and "None" are names that classes have.
            keep_default_na=False, na_values=["", "NaN", "nan"], skipinitialspace=True,
        )  # fmt: skip
    # pandas makes an index of the fields that have no name. It may look like any other, so the second line is counted.
    if (len(top) > 1 and len(top[1]) > len(fields)) or not frame.index.equals(pd.RangeIndex(len(frame))):
        raise BadUpload(f"{label} has rows with more fields than its first line has names. Give each column a name.")
    frame.columns = pd.Index([str(name) if has_header else f"column {i + 1}" for i, name in enumerate(frame.columns)])
    _check_table(len(frame), frame.shape[1], label, limits)
    for name in frame.columns:
        unnamed = re.fullmatch(r"Unnamed: \d+", name)
        if unnamed and len(frame) > 1 and np.array_equal(frame[name].to_numpy(), np.arange(len(frame))):
            raise BadUpload(
                f"{label} has a column without a name that counts the rows; it would be taken for a feature. "
                "Write the table with index=False, or delete that column."
            )
    return _table_arrays(frame, label, limits, labels)


def read_parquet(data: bytes, label: str, limits: Limits, labels: str | None = None) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with parsing(label, "a Parquet file"):
        metadata = pq.read_metadata(pa.BufferReader(data))
        names = list(metadata.schema.to_arrow_schema().names)
        types = dict(zip(names, metadata.schema.to_arrow_schema().types, strict=True))
        rows, columns = metadata.num_rows, metadata.num_columns
        unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    _check_table(rows, columns, label, limits)
    check_unpacked(label, unpacked, limits)
    if len(set(names)) != len(names):
        raise BadUpload(f"{label} has two columns of one name. Give each a name of its own.")
    text = []
    for name, kind in types.items():
        if isinstance(kind, pa.DictionaryType):
            kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            continue
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (is_text and _is_target_column(name, labels)):
            raise BadUpload(
                f"{label}: the column {name!r} holds {str(kind)[:80]} from row 1 on, not numbers. {_ENCODE}"
            )
        text.append(name)
    with parsing(label, "a Parquet file"):
        # Text stays dictionary-encoded: written out, a long label repeated over millions of rows would fill the memory.
        table = pq.ParquetFile(pa.BufferReader(data), read_dictionary=text).read(use_threads=False)
        frame = table.to_pandas(ignore_metadata=True)
    if len(frame) != rows:
        raise BadUpload(f"{label} declares {rows:,} rows and holds {len(frame):,}. Save it again.")
    return _table_arrays(frame, label, limits, labels)


def _is_target_column(name: str, labels: str | None) -> bool:
    return name == labels if labels is not None else name.strip().lower() in TABLE_TARGET_NAMES


def _check_table(rows: int, columns: int, label: str, limits: Limits) -> None:
    # 8 bytes a number while pandas holds the table
    if rows > limits.max_rows or columns > limits.max_columns or rows * columns * 8 > limits.max_unpacked_bytes:
        raise BadUpload(
            f"{label} is a table of {rows:,} rows and {columns:,} columns; the limits are {limits.max_rows:,} rows, "
            f"{limits.max_columns:,} columns and {size_text(limits.max_unpacked_bytes)}. Use fewer samples."
        )


def _table_arrays(frame: Any, label: str, limits: Limits, labels: str | None) -> dict[str, np.ndarray]:
    """Numeric columns as x [N, F] float32, the column of labels as y (text: numbers, and class_names)."""
    import pandas as pd

    targets = [name for name in frame.columns if _is_target_column(name, labels)]
    if labels is not None and not targets:
        raise BadUpload(f"{label} has no column {labels!r}; it has {listed([str(name) for name in frame.columns])}.")
    if len(targets) > 1:
        raise BadUpload(f"{label} has several columns of labels: {listed(targets)}. Keep one of them.")
    features = [name for name in frame.columns if name not in targets]
    if not len(frame):
        raise BadUpload(
            f"{label} has the columns {listed([str(name) for name in frame.columns])} and no rows. Add some."
        )
    arrays: dict[str, np.ndarray] = {}
    x = np.empty((len(frame), len(features)), np.float32)
    for i, name in enumerate(features):
        column = frame[name]
        numbers = column if pd.api.types.is_numeric_dtype(column) else pd.to_numeric(column, errors="coerce")
        if numbers is not column and (bad := (numbers.isna() & column.notna()).to_numpy()).any():
            row = int(bad.argmax())
            raise BadUpload(
                f"{label}: the column {name!r} holds {str(column.iloc[row])[:60]!r} in row {row + 1}, not a number. "
                + _ENCODE
            )
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(values).all():
            row = int((~np.isfinite(values)).argmax())
            what = "no value" if np.isnan(values[row]) else "an infinite value"
            raise BadUpload(f"{label}: the column {name!r} has {what} in row {row + 1}. Fill it in or drop the row.")
        if np.abs(values).max(initial=0) > np.finfo(np.float32).max:
            raise BadUpload(f"{label}: the column {name!r} holds numbers too large for float32. Scale it first.")
        x[:, i] = values
    if features:
        arrays["x"] = x
    if targets:
        column = frame[targets[0]]
        missing = column.isna().to_numpy()
        if missing.any():
            raise BadUpload(f"{label}: row {int(missing.argmax()) + 1} has no label. Fill it in or drop the row.")
        if pd.api.types.is_numeric_dtype(column):
            arrays["y"] = column.to_numpy()
        else:
            codes, names = pd.factorize(column.astype("category"), sort=True)
            arrays["y"] = codes.astype(np.int64)
            arrays["class_names"] = np.array([str(name) for name in names], dtype=np.str_)
            if arrays["class_names"].nbytes > limits.max_header_bytes:
                raise BadUpload(f"{label}: the column {targets[0]!r} holds long texts, not names of classes.")
    return arrays


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
