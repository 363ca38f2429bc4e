"""Runs written scripts in a process of their own, as the person who gets them does."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import QuantizedModel
from qlab.export.translation import Translation

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = 'x"""\'\n\r\u2028import os; os._exit(7)\n# \x0c\\'

_RUN = """
import contextlib, io, json, runpy, sys
found = {}
for name in sys.argv[1:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        namespace = runpy.run_path(name)
    found[name] = {"out": out.getvalue()}
    for key in ("reference", "quantized", "comparison"):
        if hasattr(namespace.get(key), "to_dict"):
            found[name][key] = namespace[key].to_dict()
    if hasattr(namespace.get("qmodel"), "size"):
        found[name]["size"] = namespace["qmodel"].size.to_dict()
print("FOUND" + json.dumps(found))
"""


def run_scripts(folder: Path, texts: Mapping[str, str]) -> dict[str, dict]:
    """File name -> what it printed, and the results it holds as JSON; one process for all of them."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *texts], cwd=folder, capture_output=True, text=True, timeout=300,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("FOUND")[-1])


def printed(out: str, name: str) -> tuple[float, float]:
    """Accuracy and agreement, in percent, of the line that begins with this name."""
    (line,) = [line for line in out.splitlines() if line.startswith(f"{name}: ")]
    words = line.removeprefix(f"{name}: ").split()
    return float(words[1]), float(words[-2])


@cache
def _calibrated(sample: str, samples: int | None):
    """Model, data and a calibration; on a few samples where the figures do not matter."""
    model, data = qlab.load_model(sample), qlab.load_dataset(sample)
    return model, data, qlab.calibrate(model, data.calibration.subset(slice(0, samples)))


@cache
def _of_preset(sample: str, preset: str, samples: int | None) -> QuantizedModel:
    model, _, calibration = _calibrated(sample, samples)
    return qlab.convert(model, qlab.presets[preset], calibration)


def quantized(sample: str, mapping: QConfigMapping | str, samples: int | None = 32):
    """(experiment, quantized model, data)."""
    experiment = qlab.Experiment(sample, sample, mapping)
    model, data, calibration = _calibrated(sample, samples)
    if isinstance(mapping, str):
        return experiment, _of_preset(sample, mapping, samples), data
    if mapping.equalize or mapping.correct_bias:
        calibration = qlab.calibrate(model, data.calibration.subset(slice(0, samples)), mapping=mapping)
    return experiment, qlab.convert(model, mapping, calibration), data


def translated(script: Callable[[qlab.Experiment, QuantizedModel], Translation], sample: str, mapping):
    """(translation, quantized model) of this sample and mapping."""
    experiment, qmodel, _ = quantized(sample, mapping)
    return script(experiment, qmodel), qmodel


def static(weight: QuantSpec | None, activation: QuantSpec | None) -> QConfigMapping:
    return QConfigMapping(default=QConfig(weight, activation))
