"""What the training scripts of the sample models share: the training loop, export, data file and card.

Every script is run from the repository root as ``python sample_models/<name>/train.py`` and writes model.pt2, data.npz
and card.json beside itself. ``--quick`` trains for a few steps only and ``--out`` writes elsewhere; both are for tests.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_CALIBRATION = 512
N_EVALUATION = 1500


@dataclass(frozen=True)
class Card:
    """What card.json says; the counts and the accuracy are measured by `finish`, not written by hand."""

    name: str
    title: str
    task: str
    architecture: str
    source: str
    input: str
    notes: str
    planted: str | None = None


@dataclass(frozen=True)
class Samples:
    """The content of data.npz. x is raw: the network sees (x * scale - mean) / std, mean and std along axis 1."""

    x: np.ndarray
    y: np.ndarray
    calibration_index: np.ndarray
    evaluation_index: np.ndarray
    class_names: list[str]
    scale: float | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None


@dataclass(frozen=True)
class Options:
    out: Path
    quick: bool
    started: float


def options(script: str) -> Options:
    """Reads the command line and makes the run deterministic. Call it first."""
    parser = argparse.ArgumentParser(description="Trains one sample model and writes model.pt2, data.npz, card.json.")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that the script runs")
    parser.add_argument("--out", type=Path, default=Path(script).resolve().parent, help="folder to write into")
    arguments = parser.parse_args()
    # One thread: the order of a parallel sum would otherwise depend on the number of cores.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    return Options(arguments.out, arguments.quick, time.perf_counter())


def train(
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float,
    weight_decay: float = 1e-4,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """AdamW with a linear warm-up over a tenth of the steps and a cosine down to zero. Leaves the model in eval mode.

    forward: what training calls, if not the model itself.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    warm_up = max(1, steps // 10)
    model.train()
    for step in range(steps):
        rate = (step + 1) / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        x, y = batch()
        value = loss((forward or model)(x), y)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {value.item():.3f}", flush=True)
    model.eval()


def prepared(samples: Samples, index: np.ndarray) -> Tensor:
    """The rows of x as the network sees them: (x * scale - mean) / std for numbers, unchanged for tokens."""
    x = torch.from_numpy(samples.x[index])
    if samples.scale is not None:
        x = x.float() * samples.scale
    shape = [1, -1] + [1] * (x.ndim - 2)
    if samples.mean is not None:
        x = x - torch.from_numpy(samples.mean).view(shape)
    if samples.std is not None:
        x = x / torch.from_numpy(samples.std).view(shape)
    return x


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 64) -> Tensor:
    return torch.cat([model(part) for part in x.split(batch_size)])


def finish(model: nn.Module, samples: Samples, card: Card, opts: Options) -> None:
    """Writes model.pt2, data.npz and card.json; the accuracy is that of the file read back, on the evaluation part."""
    opts.out.mkdir(parents=True, exist_ok=True)
    model.eval()
    example = prepared(samples, samples.calibration_index[:4])
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        # nn.LSTM lists its weights anew in every forward pass, which export remarks on.
        warnings.filterwarnings("ignore", message=".*_flat_weights")
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    path = opts.out / "model.pt2"
    # Without this the stored example, which is real data, travels with the model.
    program.example_inputs = None
    torch.export.save(program, path)

    arrays = {field: value for field, value in vars(samples).items() if value is not None and field != "class_names"}
    arrays["class_names"] = np.array(samples.class_names, dtype=np.str_)
    np.savez_compressed(opts.out / "data.npz", **arrays)

    y = torch.from_numpy(samples.y[samples.evaluation_index])
    output = logits(torch.export.load(path).module(), prepared(samples, samples.evaluation_index))
    accuracy = (output.argmax(dim=1) == y).double().mean().item()
    top = output.topk(2, dim=1).values
    measured = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "float_accuracy": round(accuracy, 6),
        "n_calibration": len(samples.calibration_index),
        "n_evaluation": len(samples.evaluation_index),
        "classes": len(samples.class_names),
    }
    text = json.dumps(asdict(card) | measured, indent=2, ensure_ascii=False)
    (opts.out / "card.json").write_text(text + "\n", encoding="utf-8")
    ops = sorted({str(node.target) for node in program.graph.nodes if node.op == "call_function"})
    print(f"{card.name}: {measured}")
    print(f"smallest margin {(top[:, 0] - top[:, 1]).min().item():.1e}; ops {', '.join(ops)}")
    print(f"{time.perf_counter() - opts.started:.0f} s")
