"""What a model and a data set are, drawn: layer table, examples, class counts, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st

from qlab.metrics import write
from qlab.plots.classes import class_counts
from qlab.ui import errors, say, widgets

if TYPE_CHECKING:
    from qlab.data import Dataset, Finding
    from qlab.graph.capture import Model

EXAMPLES = 10
ROWS = 6
VALUES = 6
PICTURE = 64  # pixels a side on the page


def layer_table(model: Model, *, key: str, height: int = 440) -> None:
    """One line for each op: name, op, weight shape, parameters, MACs, output shape."""
    layers = model.layers
    frame = pd.DataFrame(
        {
            "Layer": [layer.name for layer in layers],
            "Op": [layer.op for layer in layers],
            "Weight": [_shape(layer.weight_shape) for layer in layers],
            "Parameters": [layer.parameters for layer in layers],
            "MACs": [layer.macs for layer in layers],
            "Output": [_shape(layer.output_shape, batch=True) for layer in layers],
        }
    )
    st.dataframe(
        frame,
        key=key,
        height=min(height, 36 * (len(frame) + 1) + 2),
        width="stretch",
        hide_index=True,
        column_config={
            "Layer": st.column_config.TextColumn(help="The name of the module in the network, and what configs match."),
            "Op": st.column_config.TextColumn(
                help="What the layer computes; configs can be set for each kind.", width="small"
            ),
            "Weight": st.column_config.TextColumn(help="Shape of the weight: outputs × inputs × kernel."),
            "Parameters": _bars("Numbers the layer has learned.", frame["Parameters"].max()),
            "MACs": _bars("Multiplications with addition for one sample: the work of the layer.", frame["MACs"].max()),
            "Output": st.column_config.TextColumn(help="Shape of what the layer gives; N counts samples."),
        },
    )


def _bars(text: str, largest: int) -> Any:
    return st.column_config.ProgressColumn(help=text, min_value=0, max_value=max(int(largest), 1), format="compact")


def _shape(shape: tuple[int, ...] | None, batch: bool = False) -> str:
    if not shape:
        return ""
    return " × ".join(["N", *map(str, shape[1:])] if batch else map(str, shape))


def data_facts(data: Dataset) -> None:
    """Count, shape, type, label kind and preprocessing in a few lines."""
    shapes = ", ".join(
        f"{name} `{_shape(tuple(x.shape), batch=True)}` {x.dtype}"
        for name, x in zip(data.input_names, data.inputs, strict=True)
    )
    labels = "no labels: agreement and SQNR only" if data.targets is None else f"{data.n_classes} {data.label_kind}"
    say.markdown(f"**{len(data):,} samples** · {shapes} · {labels}")
    steps = [f"{name} {_numbers(value)}" for name in ("scale", "mean", "std") if (value := getattr(data, name))]
    say.caption(
        f"Preprocessing: {', '.join(steps)}" if steps else "No preprocessing: the network sees the stored values."
    )


def _numbers(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{v:.4g}" for v in values[:3])
    return f"{shown}, … ({len(values)} numbers)" if len(values) > 3 else shown


def examples(data: Dataset, *, key: str) -> None:
    """A few samples as a person would look at them: pictures, decoded tokens, or rows of numbers."""
    chosen = np.unique(np.linspace(0, len(data) - 1, EXAMPLES).astype(int))
    first = data.inputs[0]
    labels = [_label(data, i) for i in chosen]
    if is_image(first):
        low, high = float(first[chosen].min()), float(first[chosen].max())
        # One by one in a row that wraps: st.image with a list leaves no gap between the pictures.
        with st.container(horizontal=True, gap="small"):
            for i, label in zip(chosen, labels, strict=True):
                st.image(picture(first[i], low, high), caption=label, width=PICTURE)
    elif data.is_tokens(0) and first.ndim == 2:
        words = vocabulary(data)
        texts = ["".join(words[t] for t in first[i]) if words else " ".join(map(str, first[i])) for i in chosen[:ROWS]]
        frame = pd.DataFrame({"Text" if words else "Token numbers": texts, "Label": labels[:ROWS]})
        st.dataframe(frame, key=key, hide_index=True, width="stretch")
    else:
        flat = first[chosen[:ROWS]].reshape(len(chosen[:ROWS]), -1)
        frame = pd.DataFrame(flat[:, :VALUES], columns=[str(i) for i in range(min(VALUES, flat.shape[1]))])
        frame.insert(0, "Label", labels[:ROWS])
        st.dataframe(frame, key=key, hide_index=True, width="stretch")
        if flat.shape[1] > VALUES:
            say.caption(f"The first {VALUES} of {flat.shape[1]:,} values of each sample, as stored.")


def _label(data: Dataset, i: int) -> str:
    if data.targets is None:
        return f"no. {i}"
    if data.targets.ndim > 1:
        return f"no. {i}, {data.targets[i].size} labels"
    number = int(data.targets[i])
    name = data.class_names[number] if data.class_names else str(number)
    return name if name.strip() else "space"


def is_image(array: np.ndarray) -> bool:
    return (array.ndim == 4 and array.shape[1] in (1, 3)) or (array.ndim == 3 and min(array.shape[1:]) >= 8)


def picture(sample: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3], enlarged in whole blocks: the browser would blur a small image."""
    scaled = ((sample.astype(np.float32) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    if scaled.ndim == 3:
        scaled = scaled[0] if len(scaled) == 1 else scaled.transpose(1, 2, 0)
    times = max(1, -(-2 * PICTURE // max(scaled.shape[:2])))
    return scaled.repeat(times, axis=0).repeat(times, axis=1)


def vocabulary(data: Dataset) -> list[str] | None:
    """Token number -> text, where the classes are the tokens: a network that says what comes next."""
    names = data.class_names
    if names is None or int(data.inputs[0].max()) + 1 != len(names):
        return None
    spelled = {"space": " ", "newline": "⏎", "other": "·"}
    return [spelled.get(name, name) for name in names]


def classes(data: Dataset, *, key: str) -> None:
    """Bars with the number of samples of each class; nothing without labels."""
    if data.targets is None:
        return
    counts = np.bincount(data.targets.reshape(-1), minlength=data.n_classes or 0)
    names = data.class_names or tuple(map(str, range(len(counts))))
    widgets.chart(class_counts(names, counts, widgets.dark()), key=key)


def checks(findings: list[Finding]) -> bool:
    """What the check of the data against the model found, with its remedy; True when nothing forbids to go on."""
    for finding in findings:
        text = errors.escape(finding.message) + (f"  \n{errors.escape(finding.remedy)}" if finding.remedy else "")
        if finding.severity == "error":
            st.error(text)
        elif finding.severity == "warning":
            say.warning(text)
    fine = [errors.escape(f.message) for f in findings if f.severity == "ok"]
    if fine:
        say.caption("Checked: " + " ".join(fine))
    return all(finding.severity != "error" for finding in findings)


def size_figures(model: Model) -> None:
    """Parameters, work and bytes as large figures."""
    macs = sum(layer.macs for layer in model.layers)
    widgets.figures(
        [
            ("Parameters", write("parameters", model.parameter_count), None, "Numbers the network has learned."),
            (
                "MACs per sample",
                write("macs", macs),
                None,
                "Multiplications with addition: the work of one prediction.",
            ),
            ("Size in float", write("size", model.float_bytes), None, "Bytes of all weights at 32 bits each."),
        ]
    )
