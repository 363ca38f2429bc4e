"""An experiment as a Python script on qlab's public API that gives the same figures."""

from __future__ import annotations

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.edits import Edit
from qlab.export.script_parts import comment, file_stem, head, stand_in, table_of
from qlab.export.translation import Difference, Translation
from qlab.lab.experiment import Experiment
from qlab.training.settings import Training


def python_script(experiment: Experiment) -> Translation:
    """The script that does what `qlab.run` does with this experiment, step by step."""
    differences: list[Difference] = []
    model, model_remark, lost = stand_in(experiment.model, "model", "model.pt2")
    differences += [lost] if lost else []
    table = table_of(experiment.data)
    data, data_remark, lost = stand_in(table["path"], "data", "data.npz")
    differences += [lost] if lost else []
    how = {key: value for key, value in table.items() if key != "path"}
    if str(how.get("targets", "")).startswith("sha256:"):
        how["targets"], labels_remark, lost = stand_in(how["targets"], "labels", "labels.npz")
        differences += [lost] if lost else []
        data_remark = f"{data_remark or ''} targets: {labels_remark}".strip()
    stem = file_stem(experiment)
    what = (
        "Quantizes the network, measures it beside the float one, and writes it to files. The figures are those of the "
        "run in the lab."
    )
    parts = [
        head(experiment, what, "qlab, with its torch; onnx for the last line.", differences),
        "import qlab\n",
        *([comment(model_remark)] if model_remark else []),
        f"model = qlab.load_model({model!r})",
        *([comment(data_remark)] if data_remark else []),
        f"data = qlab.load_dataset({', '.join([repr(data), *(f'{k}={v!r}' for k, v in how.items())])})",
        *_split(experiment),
        "",
        _mapping(experiment.mapping),
        "",
        *_measure(experiment),
        _PRINT,
        f"qmodel.save({stem + '.safetensors'!r})",
        "try:",
        f"    qmodel.to_onnx({stem + '.onnx'!r})",
        "except qlab.UnsupportedModel as error:",
        '    print("no ONNX file:", error)',
    ]
    return Translation("\n".join(parts) + "\n", f"{stem}.py", tuple(differences))


def _split(experiment: Experiment) -> list[str]:
    if experiment.calibration_samples is None:
        return []
    return [f"data = data.split(calibration={experiment.calibration_samples}, seed={experiment.seed})"]


def _measure(experiment: Experiment) -> list[str]:
    mapping, size = experiment.resolved_mapping, experiment.batch_size
    if mapping.needs_calibration:
        changed = ", mapping=mapping" if mapping.equalize or mapping.correct_bias else ""
        calibrated = [f"calibration = qlab.calibrate(model, data, batch_size={size}{changed})"]
    else:
        calibrated = ["calibration = None  # nothing takes its range from the data"]
    return [
        *calibrated,
        f"reference = qlab.evaluate(model, data, batch_size={size})",
        *_quantize(experiment),
        f"quantized = qlab.evaluate(qmodel, data, reference, batch_size={size})",
        "comparison = qlab.compare(reference, quantized, data.evaluation.targets)",
    ]


def _quantize(experiment: Experiment) -> list[str]:
    lines = ["qmodel = qlab.convert(model, mapping, calibration)"]
    if experiment.training is not None:
        usual = Training().to_dict()
        given = {k: v for k, v in experiment.training.to_dict().items() if v != usual[k] or k == "epochs"}
        fields = "".join(f", {k}={v!r}" for k, v in given.items())
        lines = [f"training = qlab.Training({fields.removeprefix(', ')})"]
        lines.append(
            "qmodel = qlab.train_qat(model, data, mapping, calibration, training=training, reference=reference)"
        )
    if experiment.edits:
        lines += ["qlab.apply_edits(qmodel, [", *(f"    {_edit(edit)}," for edit in experiment.edits), "])"]
    return lines


def _edit(edit: Edit) -> str:
    of = "" if edit.of == "weight" else f", of={edit.of!r}"
    return f"qlab.Edit({edit.tensor!r}, {edit.part!r}, {edit.index!r}, {edit.value!r}{of})"


_PRINT = """

def percent(share):
    return "unknown" if share is None else f"{100 * share:.2f} %"


interval = " to ".join(map(percent, quantized.accuracy_interval or ())) or "unknown"
print(f"accuracy   {percent(quantized.accuracy)} (95 % interval {interval}), float {percent(reference.accuracy)}")
print(f"agreement  {percent(quantized.agreement)} of {quantized.predicted:,} predictions")
print(f"compared   {comparison.verdict}")
print(f"size       {qmodel.size.quantized_bytes:,} bytes, float {qmodel.size.float_bytes:,} bytes")
"""


# ---- the config as source --------------------------------------------------------------------------------------------


def _mapping(mapping: QConfigMapping | str) -> str:
    if isinstance(mapping, str):
        return f"mapping = qlab.presets[{mapping!r}]"
    distinct = [c for i, c in enumerate(mapping.rules) if c is not None and c not in mapping.rules[:i]]

    def name(config: QConfig | None) -> str:
        return "None" if config is None else f"config_{distinct.index(config) + 1}"

    lines = [f"{name(config)} = {_qconfig(config)}" for config in distinct]
    lines.append("mapping = qlab.QConfigMapping(")
    if mapping.default is not None:
        lines.append(f"    default={name(mapping.default)},")
    for field, table in (("by_type", mapping.by_type), ("by_name", mapping.by_name)):
        if table:
            lines += [
                f"    {field}={{",
                *(f"        {key!r}: {name(value)}," for key, value in table.items()),
                "    },",
            ]
    if mapping.ranges:
        lines.append(f"    ranges={dict(mapping.ranges)!r},")
    lines += [f"    {name}=True," for name in ("equalize", "correct_bias") if getattr(mapping, name)]
    return "\n".join([*lines, ")"]) if len(lines) > len(distinct) + 1 else "mapping = qlab.QConfigMapping()"


def _qconfig(config: QConfig) -> str:
    lines = ["qlab.QConfig("]
    lines += [f"    {k}={_spec(v)}," for k, v in (("weight", config.weight), ("activation", config.activation)) if v]
    if config.mode != "static":
        lines.append(f"    mode={config.mode!r},")
    return "\n".join([*lines, ")"])


def _spec(spec: QuantSpec) -> str:
    usual = QuantSpec()
    fields = {k: getattr(spec, k) for k in ("bits", "qscheme", "observer", "observer_args", "group_size")}
    given = {k: v for k, v in fields.items() if v != getattr(usual, k)}
    if spec.signed != spec.symmetric:
        given["signed"] = spec.signed
    if spec.narrow_range:
        given["narrow_range"] = True
    return f"qlab.QuantSpec({', '.join(f'{k}={v!r}' for k, v in given.items())})"
