"""Programs read from .pt2 files: equal to the module for ordinary files, refused and never run for hostile ones."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import pickle
import random
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qlab.errors import BadUpload, QLabError, UnsafeFile, UnsupportedModel
from qlab.graph.archive import EXPORT_LINES, Program, read_program
from qlab.graph.archive_graph import build_graph
from qlab.graph.archive_ops import _ATEN, aten_operator
from qlab.graph.archive_schema import affine, check_guard, check_shape_expression

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
BATCH = Dim("batch", min=1, max=64)
LENGTH = Dim("length", min=2, max=32)


def exported(module: nn.Module, inputs: tuple, shapes: tuple | None = None, **options: object):
    """An ExportedProgram. What torch warns about while it traces is its own affair."""
    if shapes is not None and isinstance(module, Function):
        shapes = (shapes,)  # its forward takes *args, which torch.export sees as one tuple
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs, dynamic_shapes=shapes, **options)


def archive_of(module: nn.Module, inputs: tuple, shapes: tuple | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    program = exported(module, inputs, shapes, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()


def run(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        out = program.graph_module(*inputs)
    return out if isinstance(out, tuple) else (out,)


def flat(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else ()
    return [t for part in parts for t in flat(part)]


# --- round trip -------------------------------------------------------------------------------------------------------


class Function(nn.Module):
    """A module around a function, with modules of its own by name."""

    def __init__(self, function: Callable, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Tensor) -> object:
        return self.function(self, *args)


def _residual(m: Function, x: Tensor) -> Tensor:
    y = m.conv1(x)
    y = y.relu_()
    y = m.conv2(y)
    y += x
    return torch.relu_(y)


def _slicing(m: Function, x: Tensor) -> object:
    a, b = x.chunk(2, dim=1)
    c, d, e = x.split([1, 2, 1], dim=1)
    y = torch.cat([c, d, e], dim=1)
    y = nn.functional.pad(y[:, :, ::2, 1:-1], (1, 1, 2, 0), value=0.5)
    return {"y": y, "first": (a[..., -1], b[:, 0]), "stack": torch.stack([a, b]).unbind(0)}


def _views(m: Function, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h * w)
    return y.permute(0, 2, 1).contiguous().view(n * h * w, c).view(n, -1)


def _attention(m: Function, q: Tensor, k: Tensor) -> object:
    return m.mha(q, k, k)


def _tokens(m: Function, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[1], device=x.device)
    y = m.embedding(x) + m.position(positions)
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    return m.encoder(y, mask=mask, is_causal=True)


def _masks(m: Function, x: Tensor) -> object:
    mask = (x > 0) & ~(x > 1)
    y = x.masked_fill(mask, float("-inf")).softmax(-1)
    z = torch.where(mask, x, torch.zeros_like(x)).clamp(min=-1.0)
    return y, z, x.to(torch.float64).mean((1, 2), keepdim=True), x.argmax(-1), *x.topk(2, dim=-1)


def _indexing(m: Function, x: Tensor) -> object:
    index = torch.tensor([0, 2, 1])
    y = x[:, index]
    z = x[:, :, index]
    y[:, 0] = 1.5
    return y, z, x.index_select(1, index), x.gather(1, torch.zeros_like(x, dtype=torch.int64))


def _einsum(m: Function, x: Tensor) -> Tensor:
    return torch.einsum("bchw,dc->bdhw", x, m.fc.weight) + torch.einsum("bchw->bcwh", x)


def _shared(m: Function, x: Tensor) -> Tensor:
    return nn.functional.linear(m.fc(m.fc(x)), m.fc.weight, m.fc.bias) + m.tied(x)


def _tied(function: Callable) -> nn.Module:
    module = Function(function, fc=nn.Linear(8, 8), tied=nn.Linear(8, 8))
    module.tied.weight = module.fc.weight
    return module


class Constants(nn.Module):
    """Buffers of every kind, also parts of a larger storage, and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        large = torch.randn(10, 8)
        self.register_buffer("slice", large[2:5])
        self.register_buffer("row", large[5:6], persistent=False)
        self.register_buffer("transposed", torch.randn(8, 3).t())
        self.register_buffer("expanded", torch.randn(1, 8).expand(3, 8))
        self.register_buffer("empty", torch.zeros(0, 8))
        self.register_buffer("scalar", torch.tensor(2.0))
        self.register_buffer("float16", torch.ones(8).half())
        self.plain = torch.randn(100)[3:11]

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.slice + self.row + self.transposed + self.expanded + self.float16 + self.plain
        return torch.cat([y, self.empty]) * self.scalar + torch.tensor([0.5])


def _conv_bn() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 1)
    )
    nn.init.uniform_(module[1].running_mean)
    return module


def _conv2(n: int = 4) -> dict[str, nn.Module]:
    return {"conv1": nn.Conv2d(n, n, 3, padding=1), "conv2": nn.Conv2d(n, n, 3, padding=1)}


IMAGE = (torch.randn(4, 4, 8, 8),)
SEQUENCE = (torch.randn(4, 6, 8),)
MATRIX = (torch.randn(4, 8),)
FREE = ({0: BATCH},)

# name -> module, example inputs, dynamic shapes; sizes to try are the example's with another batch where it is free
CASES: dict[str, tuple[Callable[[], nn.Module], tuple, object]] = {
    "conv-bn-relu": (_conv_bn, (torch.randn(4, 3, 8, 8),), FREE),
    "residual-in-place": (lambda: Function(_residual, **_conv2()), IMAGE, FREE),
    "in-place-on-input": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)), IMAGE, FREE),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, stride=2, groups=4, padding="valid"), IMAGE, FREE),
    "padding-same": (lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2, padding_mode="reflect"), IMAGE, FREE),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.GELU(approximate="tanh")), SEQUENCE, FREE),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), (torch.randn(2, 2, 5, 5, 5),), FREE),
    "conv-transpose": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), IMAGE, FREE),
    "fixed-batch": (lambda: nn.Linear(8, 3), MATRIX, None),
    "lstm": (lambda: nn.LSTM(8, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1), SEQUENCE, FREE),
    "lstm-time-first": (lambda: nn.LSTM(8, 5), SEQUENCE, ({1: BATCH},)),
    "lstm-projected": (
        lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3, batch_first=True),
        SEQUENCE,
        FREE,
    ),
    "gru-without-bias": (lambda: nn.GRU(8, 5, num_layers=2, bias=False, batch_first=True), SEQUENCE, FREE),
    "gru": (lambda: nn.GRU(8, 5, batch_first=True, bidirectional=True), SEQUENCE, FREE),
    "rnn": (lambda: nn.RNN(8, 5, batch_first=True), SEQUENCE, FREE),
    "attention": (
        lambda: Function(_attention, mha=nn.MultiheadAttention(8, 2, batch_first=True)),
        (torch.randn(4, 6, 8), torch.randn(4, 5, 8)),
        ({0: BATCH}, {0: BATCH}),
    ),
    "encoder-layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), SEQUENCE, FREE),
    "encoder-dynamic-length": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        ),
        SEQUENCE,
        ({0: BATCH, 1: LENGTH},),
    ),
    "tokens": (
        lambda: Function(
            _tokens,
            embedding=nn.Embedding(20, 8, padding_idx=0),
            position=nn.Embedding(32, 8),
            encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
            ),
        ),
        (torch.randint(0, 20, (4, 6)),),
        ({0: BATCH, 1: LENGTH},),
    ),
    "two-inputs": (lambda: Function(lambda m, x, y: x @ y.float()), (torch.randn(4, 3), torch.ones(3, 2).long()), None),
    "slicing": (lambda: Function(_slicing), IMAGE, FREE),
    "views": (lambda: Function(_views), IMAGE, FREE),
    "pooling": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        IMAGE,
        FREE,
    ),
    "norms": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.InstanceNorm2d(4), nn.RMSNorm(8)),
        IMAGE,
        FREE,
    ),
    "batch-statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGE, FREE),
    "activations": (
        lambda: nn.Sequential(*[getattr(nn, a)() for a in "SiLU Hardswish ELU Mish PReLU Hardtanh Softplus".split()]),
        MATRIX,
        FREE,
    ),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE, FREE),
    "masks": (lambda: Function(_masks), SEQUENCE, FREE),
    "indexing": (lambda: Function(_indexing), SEQUENCE, FREE),
    "einsum": (lambda: Function(_einsum, fc=nn.Linear(4, 4)), IMAGE, FREE),
    "shared-weights": (lambda: _tied(_shared), MATRIX, FREE),
    "constants": (Constants, (torch.randn(3, 8),), None),
    "derived-size": (
        lambda: Function(lambda m, x: x.view(x.shape[0] // 2, 2, -1).sum(1)),
        (torch.randn(6, 4),),
        ({0: 2 * Dim("pairs", min=1, max=8)},),
    ),
}  # fmt: skip


@functools.cache
def case(name: str) -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    make, inputs, shapes = CASES[name]
    module = make().eval()
    return module, archive_of(module, tuple(x.clone() for x in inputs), shapes)


def _other_sizes(inputs: tuple, shapes: object) -> tuple:
    """The inputs with free dimensions cut to 2."""
    if shapes is None:
        return inputs
    out = []
    for x, free in zip(inputs, shapes, strict=True):
        for dim in free or {}:
            x = x.narrow(dim, 0, 2)
        out.append(x.contiguous())
    return tuple(out)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_program_equals_module(name: str) -> None:
    module, data = case(name)
    _, inputs, shapes = CASES[name]
    program = read_program(data)
    for sample in (inputs, _other_sizes(inputs, shapes)):
        with torch.no_grad():
            expected = flat(module(*(x.clone() for x in sample)))
        given = tuple(x.clone() for x in sample)
        got = run(program, *given)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            # the module takes shortcuts of its own for attention and recurrent layers
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(given, sample, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg="the program changed its input")


@pytest.mark.parametrize("name", CASES)
def test_program_keeps_the_contract(name: str) -> None:
    program = read_program(case(name)[1])
    nodes = list(program.graph_module.graph.nodes)
    assert [n.name for n in nodes if n.op == "placeholder"] == [s.name for s in program.inputs]
    assert program.torch_version == torch.__version__
    for node in nodes:
        assert node.name.isidentifier()
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        if node.op == "call_function":
            assert isinstance(node.meta["module_path"], str)
            assert isinstance(node.meta["module_type"], str)
            if isinstance(node.target, torch._ops.OpOverload):
                assert node.target.namespace == "aten"
                assert not node.target._schema.name.startswith("aten::_assert")
        if node.op == "get_attr":
            tensor = getattr(program.graph_module, node.target)
            assert "." not in node.target
            assert node.meta["parameter_name"]
            assert not tensor.requires_grad
            assert (node.meta["shape"], node.meta["dtype"]) == (tuple(tensor.shape), tensor.dtype)


def _ops(program: Program) -> list:
    return [n for n in program.graph_module.graph.nodes if n.op == "call_function"]


def test_layers_are_named() -> None:
    blocks = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8))
    module = Function(lambda m, x: m.last(m.blocks(m.blocks(x))), blocks=blocks, last=nn.Linear(8, 2))
    program = read_program(archive_of(module.eval(), MATRIX, FREE))
    rows = [(n.meta["module_path"], n.meta["module_type"], n.meta["module_call"]) for n in _ops(program)]
    assert rows == [
        ("blocks.0.0", "Linear", 0),
        ("blocks.0.1", "ReLU", 0),
        ("blocks.1", "Linear", 0),
        ("blocks.0.0", "Linear", 1),
        ("blocks.0.1", "ReLU", 1),
        ("blocks.1", "Linear", 1),
        ("last", "Linear", 0),
    ]
    names = {n.meta["parameter_name"] for n in program.graph_module.graph.nodes if n.op == "get_attr"}
    assert {"blocks.0.0.weight", "blocks.1.bias", "last.weight"} <= names
    assert _ops(program)[0].meta["shape"] == (4, 8)
    assert _ops(program)[0].meta["dtype"] == torch.float32


def test_strict_export_reads_the_same() -> None:
    module = _conv_bn().eval()
    x = torch.randn(4, 3, 8, 8)
    program = read_program(archive_of(module, (x,), FREE, strict=True))
    assert torch.equal(run(program, x)[0], module(x))
    assert [n.meta["module_path"] for n in _ops(program)] == ["0", "1", "2", "3", "4"]


def test_decomposed_program_is_named() -> None:
    buffer = io.BytesIO()
    program = exported(_conv_bn().eval(), (torch.randn(4, 3, 8, 8),), FREE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program.run_decompositions(), buffer)
    with pytest.raises(UnsupportedModel, match="run_decompositions"):
        read_program(buffer.getvalue())


def test_tied_weights_are_one_tensor() -> None:
    module = Function(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    with torch.no_grad():
        storage = torch.randn(2, 8, 8)
    module.a.weight, module.b.weight = nn.Parameter(storage[0]), nn.Parameter(storage[1])
    program = read_program(archive_of(module, MATRIX))
    a, b = (p for n, p in program.graph_module.named_parameters() if n.endswith("weight"))
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    assert torch.equal(run(program, *MATRIX)[0], module(*MATRIX))


def test_unused_parameters_are_left_in_the_file() -> None:
    program = read_program(case("conv-bn-relu")[1])
    assert not any("num_batches_tracked" in name for name, _ in program.graph_module.named_buffers())


def test_input_specs() -> None:
    spec = read_program(case("encoder-dynamic-length")[1]).inputs[0]
    assert spec.name == "src"
    assert spec.dtype == torch.float32
    assert spec.shape == (None, None, 8)
    assert spec.example_shape == (4, 6, 8)
    assert spec.minimum == (1, 2, 8)
    assert spec.maximum == (64, 32, 8)
    fixed = read_program(case("fixed-batch")[1]).inputs[0]
    assert (fixed.shape, fixed.minimum, fixed.maximum) == ((4, 8), (4, 8), (4, 8))
    derived = read_program(case("derived-size")[1]).inputs[0]
    assert (derived.shape, derived.minimum, derived.maximum) == ((None, 4), (2, 4), (16, 4))


def test_unlimited_size() -> None:
    spec = read_program(archive_of(nn.Linear(8, 2), MATRIX, ({0: Dim.AUTO},))).inputs[0]
    assert (spec.shape, spec.maximum) == ((None, 8), (None, 8))


class WithConstants(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 3, keep: bool = True) -> object:
        return (x * times if mask is None else x), None, 7


def test_constant_inputs_vanish() -> None:
    program = read_program(archive_of(WithConstants(), (*MATRIX, None, 5, True)))
    assert [s.name for s in program.inputs] == ["x"]
    assert torch.equal(run(program, *MATRIX)[0], MATRIX[0] * 5)


def test_copy_and_pickle_free_use() -> None:
    """Later stages copy the graph."""
    program = read_program(case("lstm")[1])
    twin = copy.deepcopy(program.graph_module)
    expected, got = program.graph_module(*SEQUENCE), twin(*SEQUENCE)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "secret-folder" / "model.pt2"
    path.parent.mkdir()
    path.write_bytes(case("fixed-batch")[1])
    for source in (path, str(path)):
        assert len(read_program(source).inputs) == 1
    for wrong in (path.parent, tmp_path / "secret-folder" / "none.pt2"):
        with pytest.raises(BadUpload) as refusal:
            read_program(wrong)
        assert "secret-folder" not in str(refusal.value)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="shared data is not here")
def test_resnet20_accuracy() -> None:
    program = read_program(CIFAR10 / "resnet20.pt2")
    with np.load(CIFAR10 / "test1000.npz") as data:
        x, y = torch.tensor(data["x"]) / 255, torch.tensor(data["y"])
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    (logits,) = run(program, (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert (logits.argmax(1) == y).float().mean().item() == pytest.approx(0.915, abs=1e-6)


# --- what an exported model may not be --------------------------------------------------------------------------------


def _no_grad(m: Function, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.fc(x)


def _cond(m: Function, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple, object, str]] = {
    "batch-norm-training": (lambda: nn.BatchNorm2d(4), IMAGE, None, "training mode"),
    "dropout-training": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), MATRIX, None, "training mode"),
    "lstm-training": (lambda: nn.LSTM(8, 5, num_layers=2, dropout=0.5), SEQUENCE, None, "training mode"),
    "attention-training": (lambda: nn.TransformerEncoderLayer(8, 2, 16), SEQUENCE, None, "training mode"),
    "own-state-behind-a-view": (
        lambda: Function(lambda m, x: m.fc(x) + m.fc.weight.detach().view(-1)[:8].mul_(2), fc=nn.Linear(8, 8)),
        MATRIX,
        None,
        "writes to its own",
    ),
    "own-state": (Counter, MATRIX, None, "writes to its own 'count'"),
    "no-grad": (lambda: Function(_no_grad, fc=nn.Linear(8, 2)), MATRIX, None, "wrap_with_set_grad_enabled"),
    "cond": (lambda: Function(_cond), MATRIX, None, "cond"),
    "random": (lambda: Function(lambda m, x: x + torch.rand_like(x)), MATRIX, None, "rand_like"),
    "free-number": (lambda: Function(lambda m, x, n: x * n), (*MATRIX, 7), (None, Dim.DYNAMIC), "number that may vary"),
    "complex": (lambda: Function(lambda m, x: torch.fft.fft(x).real), MATRIX, None, "fft"),
    "no-tensor-out": (lambda: Function(lambda m, x: 3), MATRIX, None, "returns no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unsupported_model(name: str) -> None:
    make, inputs, shapes, words = REFUSED[name]
    with pytest.raises((UnsupportedModel, BadUpload), match=re.escape(words)):
        read_program(archive_of(make().train(), inputs, shapes))


def test_training_refusal_gives_the_lines() -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        read_program(archive_of(nn.Dropout(0.5), MATRIX))
    assert EXPORT_LINES in str(refusal.value)


# --- hostile archives -------------------------------------------------------------------------------------------------


Entries = dict[str, bytes]


def unpacked(data: bytes) -> Entries:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def packed(entries: Entries, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def the(entries: Entries, ending: str) -> str:
    (name,) = (n for n in entries if n.endswith(ending))
    return name


def document_of(entries: Entries, ending: str = "models/model.json") -> dict:
    return json.loads(entries[the(entries, ending)])


def with_document(entries: Entries, document: object, ending: str = "models/model.json") -> bytes:
    return packed({**entries, the(entries, ending): json.dumps(document).encode()})


def changed(data: bytes, change: Callable[[dict], object], ending: str = "models/model.json") -> bytes:
    entries = unpacked(data)
    document = document_of(entries, ending)
    change(document)
    return with_document(entries, document, ending)


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


def good() -> bytes:
    return case("conv-bn-relu")[1]


def code(marker: Path) -> str:
    return f"__import__('os').mkdir({str(marker)!r})"


def read_and_run(data: bytes) -> None:
    """All that would happen to an upload: an attack may wait for the first forward."""
    run(read_program(data), torch.randn(4, 3, 8, 8))


def refused(
    data: bytes,
    marker: Path | None = None,
    kind: type[QLabError] = BadUpload,
    match: str | None = None,
) -> None:
    with pytest.raises(kind, match=match):
        read_and_run(data)
    assert marker is None or not marker.exists(), "the file ran code"


def test_payloads_do_run_where_nobody_looks(marker: Path) -> None:
    """The attacks below are real: the payload works when it is unpickled or evaluated."""
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.is_dir()
    marker.rmdir()
    eval(code(marker))
    assert marker.is_dir()


def test_guards_code_is_refused(marker: Path) -> None:
    refused(changed(good(), lambda d: d.update(guards_code=[code(marker)])), marker, UnsafeFile, "guard")


def test_guard_in_disguise_is_refused(marker: Path) -> None:
    for text in (
        f"L['x'].size()[0] >= 1 and {code(marker)}",
        f"L['x'].size()[{code(marker)}] == 1",
        f"max(1, {code(marker)}) == 1",
        "L['x'].__class__ == 1",
        "(lambda: 1)() == 1",
        "L['x'].size()[0] == 1; import os",
        "L['x'].size()[0] == 1\nimport os",
        "[1 for x in y] == 1",
        "x == 1",
    ):
        refused(changed(good(), lambda d, t=text: d.update(guards_code=[t])), marker, UnsafeFile)


@pytest.mark.parametrize("place", ["tensor_values", "sym_int_values", "sym_bool_values", "weights"])
def test_size_formula_is_refused(place: str, marker: Path) -> None:
    expression = {"as_expr": {"expr_str": code(marker), "hint": {"as_int": 4}}}

    def change(d: dict) -> None:
        graph = d["graph_module"]["graph"]
        if place == "tensor_values":
            next(iter(graph["tensor_values"].values()))["sizes"][0] = expression
        else:
            graph[place]["s"] = expression

    def change_weights(d: dict) -> None:
        next(iter(d["config"].values()))["tensor_meta"]["sizes"][0] = expression

    if place == "weights":
        data = changed(good(), change_weights, "model_weights_config.json")
    else:
        data = changed(good(), change)
    refused(data, marker, UnsafeFile, "formula")


def test_range_constraint_key_is_refused(marker: Path) -> None:
    data = changed(good(), lambda d: d["range_constraints"].update({code(marker): {"min_val": 1, "max_val": 2}}))
    refused(data, marker, UnsafeFile, "formula")


def test_sample_inputs_are_never_opened(marker: Path) -> None:
    entries = unpacked(good())
    entries[the(entries, "sample_inputs/model.pt")] = pickle.dumps(Payload(marker))
    assert len(run(read_program(packed(entries)), torch.randn(4, 3, 8, 8))) == 1
    assert not marker.exists()


def test_pickled_weight_is_refused(marker: Path) -> None:
    entries = unpacked(good())
    entries[the(entries, "weights/weight_0")] = pickle.dumps(Payload(marker))

    def change(d: dict) -> None:
        next(iter(d["config"].values()))["use_pickle"] = True

    refused(changed(packed(entries), change, "model_weights_config.json"), marker, UnsafeFile, "pickle")


@pytest.mark.parametrize("path_name", ["custom_obj_0", "opaque_obj_0", "tensor_0"])
def test_pickled_constant_is_refused(path_name: str, marker: Path) -> None:
    entries = unpacked(good())
    folder = the(entries, "model_constants_config.json").rpartition("/")[0]
    entries[f"{folder}/{path_name}"] = pickle.dumps(Payload(marker))
    meta = {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    data = changed(packed(entries), lambda d: d["config"].update(c=meta), "model_constants_config.json")
    refused(data, marker, UnsafeFile, "pickle")


def test_custom_object_entry_is_refused(marker: Path) -> None:
    entries = unpacked(good())
    folder = the(entries, "model_constants_config.json").rpartition("/")[0]
    refused(packed({**entries, f"{folder}/custom_obj_0": pickle.dumps(Payload(marker))}), marker, UnsafeFile, "pickle")


@pytest.mark.parametrize(
    "name", ["data/aotinductor/model/x.wrapper.so", "data/aotinductor/model/x.cpp", "extra/a.so.1", "extra/b.DLL"]
)
def test_compiled_code_is_refused(name: str) -> None:
    entries = unpacked(good())
    root = next(iter(entries)).split("/")[0]
    refused(packed({**entries, f"{root}/{name}": b"\x7fELF"}), kind=UnsafeFile, match="compiled")


def test_custom_object_input_is_refused() -> None:
    spec = {"custom_obj": {"arg": {"name": "o", "class_fqn": "x.y"}, "custom_obj_name": "o"}}
    data = changed(good(), lambda d: d["graph_module"]["signature"]["input_specs"].append(spec))
    refused(data, kind=UnsafeFile, match="custom class")


TARGETS = [
    "torch.ops.aten.__class__",
    "torch.ops.aten.conv2d.__class__",
    "torch.ops.aten.conv2d.default.__call__",
    "torch.ops.aten.conv2d.default._schema",
    "torch.ops.aten.relu.default ",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.set_.source_Tensor",
    "torch.ops.aten.resize_.default",
    "torch.ops.aten.normal_.default",
    "torch.ops.aten.empty.memory_format",
    "torch.ops.aten.nonzero.default",
    "torch.ops.aten.save.default",
    "torch.ops.load_library",
    "torch.ops.prim.device.default",
    "torch.ops.mylib.run.default",
    "torch.ops.higher_order.cond",
    "torch.ops.higher_order.run_const_graph",
    "torch.os.system",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.serialization.os.mkdir",
    "_operator.attrgetter",
    "_operator.methodcaller",
    "_operator.call",
    "_operator.pow",
    "_operator.lshift",
    "_operator.__class__",
    "math.__loader__",
    "math.factorial",
    "builtins.eval",
    "os.mkdir",
    "#extension:op",
    "",
    "relu\n",
    "torch.ops.aten.relu.default\nimport os",
]


@pytest.mark.parametrize("target", TARGETS)
def test_operator_tricks_are_refused(target: str, marker: Path) -> None:
    argument = {"name": "self", "arg": {"as_string": str(marker)}, "kind": 1}

    def change(d: dict) -> None:
        node = d["graph_module"]["graph"]["nodes"][2]
        node["target"] = target
        if "relu" not in target:
            node["inputs"] = [argument]

    refused(changed(good(), change), marker, QLabError)


@pytest.mark.parametrize(
    "name", ["x=__import__('os')", "class", "self", "torch", "__init__", "a b", "1x", "é", "x\n", ""]
)
def test_names_do_not_reach_generated_code(name: str) -> None:
    """Any name of an input or node either works or is refused; the generated code has identifiers alone."""
    text = json.dumps(document_of(unpacked(good())))
    for old in ("input", "relu", "conv2d"):
        renamed = json.loads(text.replace(f'"name": "{old}"', f'"name": {json.dumps(name)}'))
        values = renamed["graph_module"]["graph"]["tensor_values"]
        values[name] = values[old]
        try:
            program = read_program(with_document(unpacked(good()), renamed))
        except QLabError:
            continue
        assert all(n.name.isidentifier() for n in program.graph_module.graph.nodes)
        assert len(run(program, torch.randn(4, 3, 8, 8))) == 1
        assert "__import__" not in program.graph_module.code


def test_text_where_a_tensor_belongs_is_refused() -> None:
    def change(d: dict) -> None:
        d["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_string": "x"}

    refused(changed(good(), change), match="should be Tensor")


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ({"as_custom_obj": {"name": "a", "class_fqn": "b"}}, UnsafeFile),
        ({"as_operator": "torch.load"}, UnsafeFile),
        ({"as_graph": {"name": "g", "graph": {}}}, UnsupportedModel),
        ({"as_complex": {"real": 1.0, "imag": 0.0}}, UnsupportedModel),
        ({"as_nested_tensors": []}, UnsupportedModel),
        ({"as_none": True}, BadUpload),
        ({"as_tensor": {"name": "later"}}, BadUpload),
        ({"as_tensor": {"name": 3}}, BadUpload),
        ({"as_tensor": {}}, BadUpload),
        ({"as_int": 2**70}, BadUpload),
        ({"as_int": True}, BadUpload),
        ({"as_sym_int": {"as_name": "input"}}, BadUpload),
        ({}, BadUpload),
        ([], BadUpload),
        (None, BadUpload),
    ],
    ids=lambda v: json.dumps(v)[:40] if not isinstance(v, type) else v.__name__,
)
def test_odd_arguments_are_refused(argument: object, kind: type[QLabError]) -> None:
    def change(d: dict) -> None:
        d["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = argument

    refused(changed(good(), change), kind=kind)


WEIGHT_CHANGES: dict[str, Callable[[dict], object]] = {
    "size-too-large": lambda m: m["sizes"].__setitem__(0, {"as_int": 9}),
    "size-huge": lambda m: m["sizes"].__setitem__(0, {"as_int": 2**62}),
    "size-negative": lambda m: m["sizes"].__setitem__(0, {"as_int": -1}),
    "size-symbolic": lambda m: m["sizes"].__setitem__(0, {"as_expr": {"expr_str": "s0", "hint": {"as_int": 8}}}),
    "stride-out-of-bounds": lambda m: m["strides"].__setitem__(0, {"as_int": 10_000}),
    "stride-overflow": lambda m: m["strides"].__setitem__(0, {"as_int": 2**62}),
    "stride-negative": lambda m: m["strides"].__setitem__(0, {"as_int": -27}),
    "stride-missing": lambda m: m["strides"].pop(),
    "offset": lambda m: m.update(storage_offset={"as_int": 1}),
    "offset-negative": lambda m: m.update(storage_offset={"as_int": -1}),
    "dtype-wider": lambda m: m.update(dtype=8),
    "dtype-unknown": lambda m: m.update(dtype=99),
    "dtype-complex": lambda m: m.update(dtype=10),
    "sparse": lambda m: m.update(layout=1),
    "expanded-to-terabytes": lambda m: m.update(
        sizes=[{"as_int": 2**20}] * 2, strides=[{"as_int": 0}] * 2, storage_offset={"as_int": 0}
    ),
    "many-dimensions": lambda m: m.update(sizes=[{"as_int": 1}] * 1000, strides=[{"as_int": 0}] * 1000),
}


@pytest.mark.parametrize("name", WEIGHT_CHANGES)
def test_weight_that_does_not_fit_its_bytes(name: str) -> None:
    def change(d: dict) -> None:
        WEIGHT_CHANGES[name](d["config"]["0.weight"]["tensor_meta"])

    refused(changed(good(), change, "model_weights_config.json"))


LSTM_CHANGES: dict[str, Callable[[dict], object]] = {
    "hidden-weight": lambda c: c.update({"weight_hh_l0": c["weight_hh_l1"] | {"tensor_meta": _meta(1, 5)}}),
    "input-weight": lambda c: c.update({"weight_ih_l1": c["weight_ih_l1"] | {"tensor_meta": _meta(20, 3)}}),
    "bias": lambda c: c.update({"bias_ih_l0": c["bias_ih_l0"] | {"tensor_meta": _meta(1)}}),
}


def _meta(*sizes: int) -> dict:
    strides = [int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))]
    return {
        "dtype": 7,
        "sizes": [{"as_int": n} for n in sizes],
        "strides": [{"as_int": n} for n in strides],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


@pytest.mark.parametrize("name", LSTM_CHANGES)
def test_recurrent_weights_that_do_not_fit(name: str) -> None:
    """The oneDNN kernel would read past their end."""
    data = changed(case("lstm")[1], lambda d: LSTM_CHANGES[name](d["config"]), "model_weights_config.json")
    refused(data, match="do not fit")


def test_sizes_without_end() -> None:
    """A chain of squarings makes an integer that fills the memory."""

    def change(d: dict) -> None:
        graph = d["graph_module"]["graph"]
        argument = {"name": "self", "arg": {"as_tensor": {"name": "input"}}, "kind": 1}
        dim = {"name": "dim", "arg": {"as_int": 0}, "kind": 1}
        nodes = [{"target": "torch.ops.aten.sym_size.int", "inputs": [argument, dim]}]
        for i in range(40):
            number = {"name": "a", "arg": {"as_sym_int": {"as_name": f"n{i}"}}, "kind": 1}
            nodes.append({"target": "_operator.mul", "inputs": [number, number]})
        for i, node in enumerate(nodes):
            node.update(outputs=[{"as_sym_int": {"as_name": f"n{i}"}}], metadata={}, name=f"n{i}")
        graph["nodes"] = nodes + graph["nodes"]

    refused(changed(good(), change), kind=UnsupportedModel, match="bits")


@pytest.mark.parametrize(
    "path", ["../weights/weight_0", "/etc/passwd", "weight_999", "weight_0/../weight_1", "model.json"]
)
def test_weight_path_tricks(path: str) -> None:
    data = changed(good(), lambda d: d["config"]["0.weight"].update(path_name=path), "model_weights_config.json")
    refused(data)


def test_weight_bytes_cut_off() -> None:
    entries = unpacked(good())
    name = the(entries, "weights/weight_0")
    for length in (0, 1, len(entries[name]) - 4):
        refused(packed({**entries, name: entries[name][:length]}), match="bytes")


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "archive/../../evil", "archive\\..\\evil", "C:/evil", "archive//x", "archive/./x"]
)
def test_entry_names(name: str) -> None:
    data = packed({**unpacked(good()), "archive/zzzz" + "q" * (len(name) - 12) if len(name) > 12 else name: b""})
    if len(name) > 12:  # zipfile normalises some names on writing: put the bytes in afterwards
        data = data.replace(("archive/zzzz" + "q" * (len(name) - 12)).encode(), name.encode())
    refused(data, kind=UnsafeFile, match="outside")


def test_null_byte_in_entry_name() -> None:
    data = packed({**unpacked(good()), "archive/aZb": b""}).replace(b"archive/aZb", b"archive/a\0b")
    refused(data, kind=UnsafeFile)


def test_duplicate_entries() -> None:
    entries = unpacked(good())
    buffer = io.BytesIO(packed(entries))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(the(entries, "models/model.json"), b"{}")
    refused(buffer.getvalue(), kind=UnsafeFile, match="two entries")


def test_link_entries() -> None:
    buffer = io.BytesIO(packed(unpacked(good())))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("archive/data/weights/weight_99")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(buffer.getvalue(), kind=UnsafeFile, match="link")


def test_two_models_or_none() -> None:
    entries = unpacked(good())
    name = the(entries, "models/model.json")
    refused(packed({**entries, name.replace("model.json", "other.json"): b"{}"}), match="2 models")
    refused(packed({k: v for k, v in entries.items() if k != name}), match="0 models")


def test_zip_bomb() -> None:
    entries = {**unpacked(good()), "archive/data/weights/weight_99": bytes(64 * 2**20)}
    refused(packed(entries, zipfile.ZIP_DEFLATED), match="trap")


def test_declared_size_bomb() -> None:
    """A size in the table of contents that nobody can unpack."""
    data = packed({**unpacked(good()), "archive/big": b"1234"})
    at = data.rindex(b"archive/big") - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    for field in (20, 24):
        data = data[: at + field] + struct.pack("<I", 0xF0000000) + data[at + field + 4 :]
    refused(data, match="GB")


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.graph.archive.MAX_ENTRIES", 5)
    refused(good(), match="entries")


def test_large_table_of_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.graph.archive.MAX_DIRECTORY", 500)
    refused(good(), match="table of contents")


def test_large_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(good())
    monkeypatch.setattr("qlab.graph.archive.MAX_ARCHIVE", 500)
    refused(good(), match="GB")
    with pytest.raises(BadUpload, match="GB"):
        read_program(path)


def test_large_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.graph.archive.MAX_JSON", 500)
    refused(good(), match="reads up to")


def test_too_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.graph.archive_graph.MAX_NODES", 2)
    refused(good(), match="entries")


def test_compressed_archive_is_read() -> None:
    """Somebody packed it again; nothing is wrong with it."""
    program = read_program(packed(unpacked(good()), zipfile.ZIP_DEFLATED))
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(run(program, x)[0], case("conv-bn-relu")[0](x))


def test_unusual_compression() -> None:
    refused(packed(unpacked(good()), zipfile.ZIP_LZMA), match="compressed")


def test_encrypted() -> None:
    data = bytearray(good())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.start_dir  # type: ignore[attr-defined]
    data[at + 8] |= 1
    refused(bytes(data), match="encrypted")


def test_wrong_checksum() -> None:
    entries = unpacked(good())
    weight = entries[the(entries, "weights/weight_0")]
    data = bytearray(good())
    data[data.index(weight) + 5] ^= 0xFF
    refused(bytes(data), match="damaged")


def test_big_endian() -> None:
    entries = unpacked(good())
    refused(packed({**entries, the(entries, "byteorder"): b"big"}), match="big-endian")


@pytest.mark.parametrize("depth", [80, 900, 100_000])
def test_deep_nesting(depth: int) -> None:
    entries = unpacked(good())
    name = the(entries, "models/model.json")
    document = entries[name].decode().rstrip()[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    refused(packed({**entries, name: document.encode()}), match="nested|not JSON")


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"{", b'{"a": 1' + b"0" * 5000 + b"}"])
def test_broken_json(text: bytes) -> None:
    entries = unpacked(good())
    for name in ("models/model.json", "model_weights_config.json", "model_constants_config.json"):
        refused(packed({**entries, the(entries, name): text}))


def test_other_schema_version() -> None:
    data = changed(good(), lambda d: d.update(schema_version={"major": 9, "minor": 0}, torch_version="3.0.1"))
    refused(data, match=r"torch 3\.0\.1 with schema version 9")


# --- files of other kinds ---------------------------------------------------------------------------------------------


def _torch_save(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


OTHER_FILES: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    "torchscript": (
        lambda: packed({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/x.py": b""}),
        "TorchScript",
        True,
    ),
    "torch-save-module": (lambda: _torch_save(nn.Linear(2, 2)), "torch.save", True),
    "torch-save-weights": (lambda: _torch_save(nn.Linear(2, 2).state_dict()), "torch.save", True),
    "torch-save-legacy": (
        lambda: _torch_save(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "pickle",
        True,
    ),
    "pickle": (lambda: pickle.dumps({"a": 1}), "pickle", True),
    "older-export": (lambda: packed({"serialized_exported_program.json": b"{}"}), "older torch", True),
    "npz": (_npz, "Upload it as data", False),
    "other-zip": (lambda: packed({"a.txt": b"x"}), "not a model", True),
    "empty-zip": (lambda: packed({}), "not a model", True),
    "onnx": (lambda: b"\x08\x0a\x12\x07pytorch" + bytes(100), "ONNX", True),
    "safetensors": (lambda: struct.pack("<Q", 50) + b'{"a":{"dtype":"F32"', "safetensors", True),
    "keras": (lambda: b"\x89HDF\r\n\x1a\n", "Keras", True),
    "gguf": (lambda: b"GGUF\x03\x00", "GGUF", True),
    "tflite": (lambda: b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite", True),
    "empty": (lambda: b"", "empty", False),
    "noise": (lambda: bytes(range(100, 200)), "does not know", True),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_named(name: str) -> None:
    make, words, with_lines = OTHER_FILES[name]
    with pytest.raises(BadUpload, match=re.escape(words)) as refusal:
        read_program(make())
    assert (EXPORT_LINES in str(refusal.value)) == with_lines


def test_pickles_are_not_opened(marker: Path) -> None:
    for data in (pickle.dumps(Payload(marker)), _torch_save(Payload(marker))):
        refused(data, marker)


# --- fuzz -------------------------------------------------------------------------------------------------------------


def attempt(data: bytes) -> bool:
    """True if the program was read; anything but a QLabError fails the test."""
    try:
        program = read_program(data)
    except QLabError:
        return False
    assert all(n.name.isidentifier() for n in program.graph_module.graph.nodes)
    return True


def test_cut_off_anywhere() -> None:
    data = good()
    for length in sorted({*range(0, len(data), 997), *range(len(data) - 60, len(data))}):
        assert not attempt(data[:length])


def test_byte_flips() -> None:
    data = good()
    generator = random.Random(7)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(generator.choice((1, 1, 4))):
            # half of the flips in the table of contents at the end, where they hurt most
            start = generator.choice((0, len(data) - 2500))
            broken[generator.randrange(start, len(data))] ^= 1 << generator.randrange(8)
        attempt(bytes(broken))


ODD_VALUES: list[object] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 2**80, 1.5, float("nan"), float("inf"), "", "x", "Infinity",
    "torch.ops.aten.relu.default", [], [[]], {}, {"as_int": 1}, {"as_tensor": {"name": "relu"}}, {"as_none": True},
    {"as_sym_int": {"as_name": "x"}}, [{"as_int": 2}], {"name": "x"}, "__import__('os')",
]  # fmt: skip


def _places(value: object) -> list[tuple]:
    places: list[tuple] = []
    stack = [value]
    while stack:
        here = stack.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, inner in items:
            places.append((here, key))
            stack.append(inner)
    return places


@pytest.mark.parametrize("name", ["conv-bn-relu", "lstm", "tokens", "derived-size"])
def test_json_mutations(name: str) -> None:
    entries = unpacked(case(name)[1])
    _, inputs, _ = CASES[name]
    generator = random.Random(name)
    read = 0
    for step in range(120):
        ending = "models/model.json" if step % 4 else "model_weights_config.json"
        document = document_of(entries, ending)
        document.get("graph_module", {}).pop("module_call_graph", None)  # the reader does not look at it
        for _ in range(generator.choice((1, 1, 2, 5))):
            places = _places(document)
            if not places:
                break
            holder, key = generator.choice(places)
            action = generator.randrange(4)
            if action == 0:
                del holder[key]
            elif action == 1:
                other, other_key = generator.choice(places)
                holder[key] = json.loads(json.dumps(other[other_key])) if _has(other, other_key) else None
            elif action == 2 and isinstance(holder, dict):
                holder[generator.choice(("as_int", "name", "x", "as_tensors"))] = holder.pop(key)
            else:
                holder[key] = copy.deepcopy(generator.choice(ODD_VALUES))
        read += attempt(with_document(entries, document, ending))
    assert read > 5, "the mutations should leave some programs whole"
    assert len(inputs) >= 1


def _has(holder: object, key: object) -> bool:
    return key in holder if isinstance(holder, dict) else 0 <= key < len(holder)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[0] == L['y'].size()[0]",
        "(L['x'].size()[1] // 2) <= L['x'].size()[1]",
        "(8*L['x'].size()[1]) != (8*max(1, L['x'].size()[1] // 2))",
        "((L['flat_args'][0].size()[1]*L['flat_args'][1].size()[0]) % (2*(L['flat_args'][1].size()[0] // 2))) == 0",
        "-1 + L['x'].size()[0] >= 2",
        "L['x'].size()[0] <= 4 and L['x'].size()[0] > -3",
    ],
)
def test_guards_of_torch_pass(text: str) -> None:
    check_guard(text)


@pytest.mark.parametrize(
    "text", ["", "1", "L['x']", "== 1", "1 == ", "(1 == 1", "1 == 1)", "1, 2 == 1", "1 not 2 == 3"]
)
def test_odd_guards_fail(text: str) -> None:
    with pytest.raises(UnsafeFile):
        check_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "Symbol('s77', positive=True, integer=True)",
        "Add(Mul(Integer(2), Symbol('s77', positive=True, integer=True)), Integer(-1))",
        "FloorDiv(Add(Symbol('s27', positive=True, integer=True), Integer(1)), Integer(2))",
        "Equality(Mod(Symbol('u0', integer=True), Integer(2)), Integer(0))",
        "Mul(Integer(10), Max(Integer(1), FloorDiv(s27, Integer(2))))",
        "2*s65 + 1",
        "(s0 - 1) // 2",
        "ToFloat(Mul(Float('1.5', precision=53), s0))",
    ],
)
def test_formulas_of_torch_pass(text: str) -> None:
    check_shape_expression(text)


@pytest.mark.parametrize(
    "text",
    ["", "x", "Symbol", "Symbol('s0').subs", "Symbol('a.b')", "Lambda(s0, s0)", "s0.args", "s0()", "Add()", "s0 s1",
     "'s0'", "eval('1')", "Symbol('s0', __class__=True)", "s0[0]", "lambda: 1", "s0\n", "Add(s0", "Function('f')(s0)"],
)  # fmt: skip
def test_odd_formulas_fail(text: str) -> None:
    with pytest.raises(UnsafeFile):
        check_shape_expression(text)


def test_long_formulas_take_no_time() -> None:
    check_shape_expression("(" * 4000 + "s0" + ")" * 4000)
    with pytest.raises(UnsafeFile):
        check_shape_expression("s0+" * 100_000 + "s0")


def test_affine() -> None:
    symbol = "Symbol('s7', positive=True, integer=True)"
    assert affine(symbol) == (1, "s7", 0)
    assert affine(f"Add(Mul(Integer(2), {symbol}), Integer(-1))") == (2, "s7", -1)
    assert affine("s7") == (1, "s7", 0)
    assert affine(f"FloorDiv({symbol}, Integer(2))") is None
    assert affine(f"Mul({symbol}, Symbol('s8'))") is None


def test_every_listed_operator_exists() -> None:
    missing = [name for name in _ATEN if aten_operator(f"torch.ops.aten.{name}") is None]
    assert not missing


def test_no_listed_operator_is_dangerous() -> None:
    words = (
        "rand",
        "normal",
        "bernoulli",
        "multinomial",
        "file",
        "resize",
        "set_",
        "empty",
        "nonzero",
        "item",
        "from_",
    )
    found = [n for n in _ATEN if any(w in n.split(".")[0] for w in words)]
    assert not [n for n in found if not n.startswith("count_nonzero")]
    for name in _ATEN:
        schema = aten_operator(f"torch.ops.aten.{name}")._schema
        writes = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        assert not writes or schema.name.endswith("_"), name


def test_build_graph_needs_no_archive() -> None:
    document = document_of(unpacked(good()))
    graph_module, inputs = build_graph(document, lambda kind, name: torch.zeros(8))
    assert inputs[0].shape == (None, 3, 8, 8)
    assert isinstance(graph_module, torch.fx.GraphModule)
