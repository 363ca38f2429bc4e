"""What the written scripts share: comments nothing can break out of, the head, and the loading of data with numpy."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qlab.difference import extras
from qlab.export.translation import Difference
from qlab.lab.experiment import IN_MEMORY, Experiment
from qlab.samples import SAMPLES, sample_names

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel

WIDTH = 118
LAYERS_NAMED = 6
STEM = 60  # characters of a file name before its ending


def comment(text: str, indent: str = "") -> str:
    """Lines of comment. What does not print is escaped, so that a name with a line break stays inside."""
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return textwrap.fill(
        safe, WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {indent}", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def head(experiment: Experiment, what: str, install: str, differences: Sequence[Difference]) -> str:
    """The comment a script begins with: what it does, what it needs, and what it does differently."""
    lines = [
        comment(f"Written by qlab for {model_name(experiment.model)!r}, {config_name(experiment)!r}."),
        "#",
        comment(what),
        "#",
        comment(f"Needs: {install}"),
    ]
    if differences:
        lines += ["#", "# What differs from the experiment:"]
        for d in differences:
            lines.append("# - " + comment(f"{d.asked}: {d.written}. {d.why}{_where(d.layers)}", "  ")[4:])
    return "\n".join(lines) + "\n"


def _where(layers: tuple[str, ...]) -> str:
    if not layers:
        return ""
    more = f" and {len(layers) - LAYERS_NAMED} more" if len(layers) > LAYERS_NAMED else ""
    return f" ({', '.join(layers[:LAYERS_NAMED])}{more})"


def model_name(reference: Any) -> str:
    return reference if isinstance(reference, str) else str(getattr(reference, "name", "") or "model")


def config_name(experiment: Experiment) -> str:
    """The config in a few words."""
    mapping = experiment.mapping
    if isinstance(mapping, str):
        return mapping
    rules = mapping.rule_count
    more = [f"{rules} more {'rules' if rules > 1 else 'rule'}"] if rules else []
    return ", ".join([str(mapping.default) if mapping.default else "float", *more, *extras(mapping)])


def file_stem(experiment: Experiment) -> str:
    """A name for the files a script writes: letters, digits, dash and underscore of the model's name and the config."""
    stem = model_name(experiment.model).replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".pt2")
    if stem.startswith("sha256:"):
        stem = "model"
    return safe_stem(stem, experiment.mapping if isinstance(experiment.mapping, str) else None)


def safe_stem(model: str, config: str | None) -> str:
    """Letters, digits, dash and underscore: names of uploads come from outside."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", f"{model}_{config or 'quantized'}").strip("_-")[:STEM] or "model"


def stand_in(reference: Any, what: str, path: str) -> tuple[str, str | None, Difference | None]:
    """What a script names for a model or data: the reference, or a path to fill in with a remark and a difference."""
    if isinstance(reference, str) and not reference.startswith(("sha256:", IN_MEMORY)):
        return reference, None, None
    if isinstance(reference, str) and reference.startswith("sha256:"):
        asked, why = f"the {what} {reference!r}", "The file lies in the store of the lab, under this hash"
    else:
        name = reference if isinstance(reference, str) else f"{reference.name}:{reference.content_hash}"
        asked, why = f"the {what} {name!r}", "It lived in memory and has no file"
    written = f"the path {path!r}, to be replaced by that of the {what}"
    return path, f"fill in: the path of {asked}.", Difference(asked, written, why + ".")


def table_of(data: Any) -> Mapping[str, Any]:
    """The data of an experiment as the table {"path", "scale", "mean", "std", "targets"}."""
    return data if isinstance(data, Mapping) else {"path": data}


# ---- for scripts without qlab ---------------------------------------------------------------------------------------


def model_path(reference: Any) -> tuple[str, str | None, Difference | None]:
    """As `stand_in`, with the file behind the name of a sample."""
    if isinstance(reference, str) and reference in sample_names():
        return str(SAMPLES / reference / "model.pt2"), None, None
    return stand_in(reference, "model", "model.pt2")


def data_constants(experiment: Experiment) -> tuple[str, list[Difference]]:
    """The lines that say where the data lie and how they are read, for LOAD_DATA."""
    table = table_of(experiment.data)
    reference, differences = table["path"], []
    if isinstance(reference, str) and reference in sample_names():
        path, remark = str(SAMPLES / reference / "data.npz"), None
    else:
        path, remark, difference = stand_in(reference, "data", "data.npz")
        differences += [difference] if difference else []
    other_labels = table.get("targets", "").endswith((".npz", ".npy", ".csv", ".parquet", ".pt", ".safetensors"))
    if not path.lower().endswith(".npz") or other_labels:
        remark = 'qlab.load_dataset(the file, as the experiment reads it).save("data.npz") writes what is read here.'
        written = "'data.npz', which has to be made first: qlab.load_dataset(...).save('data.npz')"
        differences.append(Difference(f"the data {path!r}", written, "The script reads .npz alone."))
        path, table = "data.npz", {}
    lines = [comment(remark)] if remark else []
    lines.append(f"DATA = {path!r}")
    lines.append(f"LABELS = {table.get('targets')!r}  # name of the array; None: y, target, targets, label or labels")
    lines.append("# None: as the file says")
    lines += [f"{key.upper()} = {table.get(key)!r}" for key in ("scale", "mean", "std")]
    lines.append(f"CALIBRATION_SAMPLES = {experiment.calibration_samples!r}  # None: the split in the file")
    lines.append(f"SEED = {experiment.seed!r}")
    return "\n".join(lines), differences


def preamble(
    experiment: Experiment, fixed_batch: int | None, what: str, install: str, imports: str,
    own: Sequence[Difference],
) -> tuple[str, tuple[Difference, ...]]:  # fmt: skip
    """Head, imports and the constants that say what is quantized on which data; all differences, own ones last.

    what, install: see `head`. own: what this translation does differently.
    """
    model, remark, lost = model_path(experiment.model)
    data, of_data = data_constants(experiment)
    differences = (*([lost] if lost else []), *of_data, *own)
    lines = [
        head(experiment, what, install, differences),
        imports,
        *([comment(remark)] if remark else []),
        f"MODEL = {model!r}",
        data,
        f"BATCH_SIZE = {fixed_batch or experiment.batch_size}",
        f"FIXED_BATCH = {fixed_batch is not None}  # whether the graph takes this batch size alone",
    ]
    return "\n".join(lines), differences


LOAD_DATA = '''
def load_data():
    """Inputs as stored, labels or None, scale, mean, std, and the samples to calibrate and to evaluate on."""
    with np.load(DATA, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about = ("scale", "mean", "std", "class_names", "calibration_index", "evaluation_index", "sample_index")
    found = {name: arrays.pop(name) for name in (*about, "label_positions") if name in arrays}
    usual = [name for name in arrays if name.lower() in ("y", "target", "targets", "label", "labels")]
    labels = arrays[LABELS] if LABELS else arrays[usual[0]] if usual else None
    inputs = [x for name, x in arrays.items() if name not in (*usual, LABELS)]
    if labels is not None and (labels.dtype.kind not in "iub" or len(labels) != len(inputs[0])):
        raise SystemExit("The labels have to be class numbers, one row for each sample.")
    given = {"scale": SCALE, "mean": MEAN, "std": STD}
    how = {k: found.get(k) if v is None else v for k, v in given.items()}
    how = {k: None if v is None else np.atleast_1d(np.asarray(v, np.float64)) for k, v in how.items()}
    if how["scale"] is not None and any(x.dtype.kind in "iu" for x in inputs):
        how["scale"] = np.where(how["scale"] >= 2, 1 / how["scale"], how["scale"])  # 255 means 1/255
    count = len(inputs[0])
    rows = np.arange(count)
    calibration, evaluation = found.get("calibration_index"), found.get("evaluation_index")
    if CALIBRATION_SAMPLES is not None:
        order, taken = np.random.default_rng(SEED).permutation(count), min(CALIBRATION_SAMPLES, count // 2)
        calibration, evaluation = order[:taken], np.sort(order[taken:])
    elif calibration is None and evaluation is None:
        calibration = evaluation = rows
    elif calibration is None:
        calibration = np.setdiff1d(rows, evaluation)
    elif evaluation is None:
        evaluation = np.setdiff1d(rows, calibration)
    return inputs, labels, how, calibration, evaluation


def preprocess(x, how, alone):
    """(x * scale - mean) / std along axis 1, in float32; token numbers stay whole."""
    if x.dtype in (np.int32, np.int64) and not (alone and any(v is not None for v in how.values())):
        return x.astype(np.int64)

    def along(v):
        return v if len(v) == 1 else v.reshape(1, -1, *(1,) * (x.ndim - 2))

    y = x.astype(np.float32) if how["scale"] is None else (x * along(how["scale"])).astype(np.float32)
    if how["mean"] is not None:
        y = y - along(how["mean"].astype(np.float32))
    if how["std"] is not None:
        y = y / along(how["std"].astype(np.float32))
    return y


inputs, labels, how, calibration_rows, evaluation_rows = load_data()
whole = all(x.dtype in (np.int32, np.int64) for x in inputs)


def batches(rows):
    """Preprocessed inputs of BATCH_SIZE samples, and how many of them count (the rest fills a fixed batch up)."""
    for start in range(0, len(rows), BATCH_SIZE):
        part = rows[start : start + BATCH_SIZE]
        count = len(part)
        if FIXED_BATCH:
            part = np.concatenate([part, np.repeat(part[-1:], BATCH_SIZE - count)])
        yield tuple(preprocess(x[part], how, whole) for x in inputs), count


def predict(model):
    """Class numbers for the evaluation samples: from logits on the last axis, on axis 1, or from a sign."""
    found = []
    for x, count in batches(evaluation_rows):
        logits = np.asarray(model(x))[:count]
        shape = None if labels is None else labels.shape[1:]
        if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
            found.append((logits.reshape(-1) > 0).astype(np.int64))
        elif logits.ndim > 2 and shape == logits.shape[2:] and shape != logits.shape[1:-1]:
            found.append(logits.argmax(1))
        else:
            found.append(logits.argmax(-1))
    return np.concatenate(found)


def report(name, predictions, reference):
    """Prints accuracy, if there are labels, and the share of predictions equal to those of the float network."""
    truth = None if labels is None else labels[evaluation_rows]
    accuracy = "" if truth is None else f"accuracy {100 * (predictions == truth).mean():.2f} %, "
    print(f"{name}: {accuracy}agreement with float {100 * (predictions == reference).mean():.2f} %")
'''


def told_beside_rules(qmodel: QuantizedModel) -> list[Difference]:
    """What another tool cannot be asked for of what a config does beside its rules."""
    mapping, out = qmodel.mapping, []
    on_grids = {point.tensor for point in qmodel.placement.weights}
    on_grids |= {point.tensor for point in qmodel.placement.activations}
    by_hand = tuple(name for name in mapping.ranges if name in on_grids)
    if by_hand:
        why = "The script has no place for the range of a single tensor."
        out.append(Difference("ranges set by hand", "these tensors are ranged by their observers", why, by_hand))
    if mapping.equalize and qmodel.float_hash != qmodel.reference.content_hash:
        why = "The script starts from the file of the network, whose weights are as they were trained."
        out.append(Difference("weight ranges of adjacent layers equalised", "they stay as they are", why))
    if mapping.correct_bias and qmodel.weights:
        why = "The script takes the biases of the file; what rounding shifts is not known before it has quantized."
        out.append(Difference("biases corrected for what rounded weights shift", "they stay as they are", why))
    return out


def named_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order they come."""
    return tuple(dict.fromkeys(names))
