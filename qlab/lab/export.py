"""The files of a quantized model, written once by a job: ONNX and .safetensors, and what is in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime

import qlab
from qlab.errors import UnsupportedModel
from qlab.export.onnx_file import quantized_onnx, write_onnx
from qlab.export.quantized_file import save_quantized
from qlab.export.size import FileSize, file_size
from qlab.lab import stages, templates
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Stage
from qlab.lab.store import Artifact, Store
from qlab.lab.work import Outcome, Work
from qlab.runtime.session import RuntimeOptions, open_session, sensitive_entries

if TYPE_CHECKING:
    from qlab.config import QConfigMapping
    from qlab.conversion import QuantizedModel
    from qlab.data import Dataset
    from qlab.graph.capture import Model

EXPORT, ONNX_FILE, QUANTIZED_FILE = "export", "ONNX file", "quantized model"
VERSION = 3  # of what is written; raise it when the files of the same request would be others
WRITE_QUANTIZED, WRITE_ONNX = "write .safetensors", "write ONNX"


@dataclass(frozen=True)
class OnnxContents:
    """What is in an ONNX file. weights: ONNX type -> constants of that type that hold codes.

    grids: activations that lie on a grid known beforehand. domains: operator sets beside the standard one.
    float_biases: layers whose bias does not fit 32 bits. entries: of the session, which results depend on, if not on
    this CPU then on another. runtime: the version of ONNX Runtime that opened the file. inputs: (name, type, shape), 1
    for a free size.
    """

    opset: int
    domains: Sequence[str]
    nodes: int
    weights: Mapping[str, int]
    grids: int
    float_biases: Sequence[str]
    entries: Sequence[str]
    runtime: str
    inputs: Sequence[tuple[str, str, Sequence[int]]]


@dataclass(frozen=True)
class Exports:
    """The files of one model under one config, in the store.

    onnx: None where the network has no ONNX form that the runtime takes; blocked then says why, detail in the words of
    who refused it. contents, size: of the ONNX file.
    """

    quantized: Artifact
    onnx: Artifact | None
    contents: OnnxContents | None
    size: FileSize | None
    blocked: str | None = None
    detail: str | None = None


def export_task(work: Work, spec: dict[str, Any]) -> Outcome:
    """What a job of kind "export" does. Raises what loading, calibrating and converting raise."""
    experiment = Experiment.from_dict(spec)
    mapping, batch_size = experiment.resolved_mapping, experiment.batch_size
    loaded = stages.load(work, experiment, ranges=mapping.needs_calibration, reference=False, then=_own_stages)
    key = export_key(loaded.model, loaded.data, mapping, batch_size, experiment.changes)
    if _find(work.store, key) is None:
        qmodel = stages.quantized(work, loaded, experiment)
        work.store.derive_json(EXPORT, key, _write(work, qmodel))
    work.meter.finish()
    found = _find(work.store, key)
    assert found is not None
    hashes = {QUANTIZED_FILE: found.quantized.hash} | ({} if found.onnx is None else {ONNX_FILE: found.onnx.hash})
    return Outcome({"artifacts": hashes, "blocked": found.blocked, "timings": work.meter.timings})


def find_exports(
    store: Store, model: Model, data: Dataset, mapping: QConfigMapping, *, batch_size: int = 64, changes: str = ""
) -> Exports | None:
    """What a job wrote for this request, or None if there was none; writes nothing. data: split as it calibrates.
    changes: `Experiment.changes`."""
    return _find(store, export_key(model, data, mapping, batch_size, changes))


def export_key(model: Model, data: Dataset, mapping: QConfigMapping, batch_size: int, changes: str = "") -> str:
    """The data counts only where it calibrates or trains."""
    needed = mapping.needs_calibration or changes
    ranges = stages.calibration_key(model, data, batch_size, mapping) if needed else None
    return stages.key_of(
        EXPORT, VERSION, qlab.__version__, templates.template_key(model), ranges,
        json.dumps(mapping.to_dict(), sort_keys=True), *([changes] if changes else []),
    )  # fmt: skip


# ---- writing ---------------------------------------------------------------------------------------------------------


def _own_stages(_batches: int) -> list[Stage]:
    return [
        Stage(stages.CONVERT, seconds=0.2),
        Stage(WRITE_QUANTIZED, seconds=0.1),
        Stage(templates.EXPORT, seconds=templates.SECONDS),
        Stage(WRITE_ONNX, seconds=0.2),
    ]


def _write(work: Work, qmodel: QuantizedModel) -> dict[str, Any]:
    """Both files into the store; gives what is kept about them."""
    store = work.store
    work.progress(WRITE_QUANTIZED)
    with store.new_file(".safetensors") as path:
        save_quantized(qmodel, path)
        index: dict[str, Any] = {"quantized": store.add_upload(path, kind=QUANTIZED_FILE).hash}
    work.progress(templates.EXPORT)
    try:
        templates.ensure_template(store, qmodel.model)
        work.progress(WRITE_ONNX)
        assembled = quantized_onnx(qmodel)
        open_session(assembled.proto, RuntimeOptions().for_model(qmodel))  # or it says why the runtime refuses the file
        size = file_size(qmodel)
    except UnsupportedModel as error:
        return index | {"blocked": str(error), "detail": error.detail}
    with store.new_file(".onnx") as path:
        write_onnx(assembled, path)
        artifact = store.add_upload(path, kind=ONNX_FILE)
    contents = _contents(qmodel, assembled.proto, len(assembled.codes), assembled.float_biases)
    return index | {"onnx": artifact.hash, "contents": asdict(contents), "size": size.to_dict()}


def _contents(
    qmodel: QuantizedModel, proto: onnx.ModelProto, grids: int, float_biases: Sequence[str]
) -> OnnxContents:  # fmt: skip
    types: Counter[str] = Counter()
    for constant in proto.graph.initializer:
        stem, _, what = constant.name.partition("/")  # the names `assemble` gives
        if what.split(".")[0] == "codes" and not stem.endswith(".bias"):
            types[onnx.TensorProto.DataType.Name(constant.data_type).lower()] += 1
    return OnnxContents(
        opset=next(i.version for i in proto.opset_import if not i.domain),
        domains=[i.domain for i in proto.opset_import if i.domain],
        nodes=len(proto.graph.node),
        weights=dict(types),
        grids=grids,
        float_biases=list(float_biases),
        entries=sensitive_entries(qmodel),
        runtime=onnxruntime.__version__,
        inputs=[
            (s.name, str(s.dtype).removeprefix("torch."), [1 if n is None else n for n in s.shape])
            for s in qmodel.inputs
        ],
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def _find(store: Store, key: str) -> Exports | None:
    index = store.find_derived_json(EXPORT, key)
    if index is None:
        return None
    contents, size = index.get("contents"), index.get("size")
    return Exports(
        store.artifact(index["quantized"]),
        store.artifact(index["onnx"]) if "onnx" in index else None,
        OnnxContents(**contents) if contents else None,
        FileSize.from_dict(size) if size else None,
        index.get("blocked"),
        index.get("detail"),
    )
