"""Room of the accumulators: against loops over integers, and against what ONNX Runtime does on a CPU without VNNI."""

import itertools
import time

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import DataMismatch
from qlab.runtime.cpu import cpu_features
from qlab.runtime.headroom import INT16_HIGH, INT16_LOW, Headroom, Pairs, headroom
from tests.networks import Body

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
U8 = QuantSpec(bits=8)
S8 = U8.replace(signed=True)


def quantized(body, x, weight=W8, activation=U8, mode="static"):
    model = qlab.load_model(Body(body).eval(), x)
    calib = qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    config = QConfig(weight=weight, activation=None if mode == "weight_only" else activation, mode=mode)
    return qlab.convert(model, QConfigMapping(default=config), calib)


def windows(codes, kernel, stride, padding, dilation, fill):
    """[positions, *kernel, C] by loops; codes [N, C, *spatial]. Padding is `fill`, the same amount on both sides."""
    sizes = codes.shape[2:]
    outs = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]
    rows = []
    for n in range(len(codes)):
        for out in itertools.product(*map(range, outs)):
            row = []
            for tap in itertools.product(*map(range, kernel)):
                at = [o * s - p + t * d for o, s, p, t, d in zip(out, stride, padding, tap, dilation, strict=True)]
                inside = all(0 <= a < size for a, size in zip(at, sizes, strict=True))
                row.append(codes[(n, slice(None), *at)] if inside else np.full(codes.shape[1], fill))
            rows.append(row)
    return np.array(rows).reshape(len(rows), *kernel, codes.shape[1]).astype(np.int64)


def products_of(window, weights, groups):
    """For each position and output channel, the two lists a kernel multiplies: [P, O, K] and [O, K]."""
    per_group, each = len(weights) // groups, weights.shape[1]
    entering = np.stack(
        [
            window[..., o // per_group * each : (o // per_group + 1) * each].reshape(len(window), -1)
            for o in range(len(weights))
        ],
        1,
    )
    return entering, np.moveaxis(weights, 1, -1).reshape(len(weights), -1).astype(np.int64)


def by_hand(window, weights, groups, x_zero, w_zero, moved, bias):
    """Accumulators [P, O], their int16 pairs [P, O, K / 2], and what saturated pairs take from each sum [P, O]."""
    entering, rows = products_of(window, weights, groups)
    sums = np.zeros(entering.shape[:2], dtype=np.int64)
    pairs = np.zeros((*sums.shape, (rows.shape[1] + 1) // 2), dtype=np.int64)
    for p, o in np.ndindex(*sums.shape):
        for k in range(rows.shape[1]):
            a, w = int(entering[p, o, k]), int(rows[o, k])
            sums[p, o] += (a - x_zero) * (w - int(w_zero[o]))
            pairs[p, o, k // 2] += (a + moved) * w
        sums[p, o] += bias[o]
    lost = (pairs.clip(INT16_LOW, INT16_HIGH) - pairs).sum(2)
    return sums, pairs, lost


def extreme(shape, seed=0):
    """Values most of which lie near an end of their range, so that pairs of products saturate."""
    r = np.random.default_rng(seed)
    return torch.from_numpy((r.beta(0.2, 0.2, size=shape) * 3 - 1).astype(np.float32))


def conv(kind, *args, **kwargs):
    torch.manual_seed(3)
    layer = kind(*args, **kwargs)
    with torch.no_grad():
        layer.weight.copy_(extreme(layer.weight.shape, 5) - 0.5)
    return layer


CONVS = [
    pytest.param(conv(nn.Conv2d, 3, 5, 3), (3, 5, 6), U8, id="plain"),
    pytest.param(conv(nn.Conv2d, 4, 6, 3, padding=1, groups=2), (4, 5, 5), U8, id="grouped and padded"),
    pytest.param(conv(nn.Conv2d, 3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 6, 5), S8, id="strided, signed"),
    pytest.param(conv(nn.Conv2d, 2, 4, 3, padding=2, dilation=2), (2, 6, 6), U8, id="dilated"),
    pytest.param(conv(nn.Conv2d, 4, 4, 3, padding="same"), (4, 4, 4), U8, id="same"),
    pytest.param(conv(nn.Conv2d, 4, 8, 3, groups=4, padding=1), (4, 4, 4), U8, id="one channel in, two out"),
    pytest.param(conv(nn.Conv1d, 3, 4, 5, padding=2, bias=False), (3, 9), U8, id="one axis"),
    pytest.param(conv(nn.Conv3d, 2, 3, 2), (2, 3, 3, 3), U8, id="three axes"),
]


@pytest.mark.parametrize(("layer", "shape", "activation"), CONVS)
def test_convolutions_by_hand(layer, shape, activation):
    x = extreme((3, *shape))
    qmodel = quantized(layer, x, activation=activation)
    (row,) = headroom(qmodel, (x,))
    grid, weight = qmodel.activations["x"].qparams, qmodel.weights["body"]
    padding = (1, 1) if layer.padding == "same" else layer.padding
    zero = int(grid.zero_point)
    window = windows(
        qlab.quantize(x, grid).long().numpy(), layer.kernel_size, layer.stride, padding, layer.dilation, zero
    )
    bias = np.zeros(len(weight.codes), dtype=np.int64)
    if layer.bias is not None:
        bias = np.rint(layer.bias.detach().numpy() / (grid.scale * weight.scale).numpy()).astype(np.int64)
    moved = 128 if activation.signed else 0
    sums, pairs, lost = by_hand(
        window, weight.codes.numpy(), layer.groups, zero, weight.zero_point.numpy(), moved, bias
    )
    assert row.products == weight.codes[0].numel()
    assert row.positions == row.of_positions == len(window)
    assert row.seen == np.abs(sums).max()
    assert row.seen <= row.possible
    assert row.pairs.seen == (pairs.min(), pairs.max())
    outside = (pairs < INT16_LOW) | (pairs > INT16_HIGH)
    assert outside.any()
    assert row.pairs.saturated == pytest.approx(outside.mean(), rel=1e-12)
    assert row.pairs.affected == pytest.approx(outside.any(2).mean(), rel=1e-12)
    steps = lost * (grid.scale * weight.scale / qmodel.activations["body"].scale).numpy()
    assert row.pairs.shift == pytest.approx(np.abs(steps).max(), rel=1e-5)
    assert row.reduce_range
    assert row.verdict.startswith("yes: ")


@pytest.mark.parametrize("shape", [(6, 7), (3, 2, 7)], ids=["rows", "a sequence"])
def test_linear_by_hand(shape):
    x = extreme(shape)
    layer = conv(nn.Linear, 7, 4)
    qmodel = quantized(layer, x)
    (row,) = headroom(qmodel, (x,))
    grid, weight = qmodel.activations["x"].qparams, qmodel.weights["body"]
    rows = qlab.quantize(x, grid).long().numpy().reshape(-1, 7)
    bias = np.rint(layer.bias.detach().numpy() / (grid.scale * weight.scale).numpy()).astype(np.int64)
    sums, pairs, _ = by_hand(
        rows, weight.codes.numpy(), 1, int(grid.zero_point), weight.zero_point.numpy(), 0, bias
    )  # fmt: skip
    assert (row.products, row.positions) == (7, 6)
    assert row.seen == np.abs(sums).max()
    assert row.pairs.seen == (pairs.min(), pairs.max())


def test_weights_with_a_zero_point_are_multiplied_as_they_are():
    x = extreme((8, 6))
    affine = QuantSpec(bits=8, qscheme="per_tensor_affine", signed=True)
    layer = conv(nn.Linear, 6, 3, bias=False)
    qmodel = quantized(layer, x, weight=affine)
    weight = qmodel.weights["body"]
    assert int(weight.zero_point) != 0
    (row,) = headroom(qmodel, (x,))
    grid = qmodel.activations["x"].qparams
    sums, pairs, _ = by_hand(
        qlab.quantize(x, grid).long().numpy(), weight.codes.numpy(), 1, int(grid.zero_point),
        weight.zero_point.expand(3).numpy(), 0, np.zeros(3, dtype=np.int64),
    )  # fmt: skip
    assert row.seen == np.abs(sums).max()
    assert row.pairs.seen == (pairs.min(), pairs.max())


def test_possible_is_what_the_worst_codes_give():
    """Every input of codes at the ends of the range, tried out."""
    x = extreme((8, 4))
    qmodel = quantized(conv(nn.Linear, 4, 3), x)
    grid, weight = qmodel.activations["x"].qparams, qmodel.weights["body"]
    (row,) = headroom(qmodel, (x,))
    corners = np.array(list(itertools.product((0, 255), repeat=4)))
    bias = np.rint(
        qmodel.model.graph_module.get_parameter(
            next(str(n.target) for n in qmodel.model.graph_module.graph.nodes if n.name.endswith("bias"))
        )
        .detach()
        .numpy()
        / (grid.scale * weight.scale).numpy()
    ).astype(np.int64)
    sums, pairs, _ = by_hand(
        corners, weight.codes.numpy(), 1, int(grid.zero_point), weight.zero_point.numpy(), 0, bias
    )  # fmt: skip
    assert row.possible == np.abs(sums).max()
    assert row.pairs.possible == (pairs.min(), pairs.max())


def test_the_verdict_in_words():
    def row(pairs, why="", samples=8):
        return Headroom("fc", "linear", 4, 1000, 2**30, pairs, why, 8, 8, samples)

    fine = Pairs((-100, 200), (-30_000, 32_767), 0.0, 0.0, 0.0)
    lucky = Pairs((-100, 200), (-30_000, 32_768), 0.0, 0.0, 0.0)
    bad = Pairs((-40_000, 200), (-50_000, 60_000), 0.0353, 0.2, 3.0)
    assert row(fine).verdict == "no: impossible by the weights"
    assert row(lucky).verdict == "no: not seen in 8 samples"
    assert row(lucky, samples=1).verdict == "no: not seen in 1 sample"
    assert row(bad).verdict == "yes: 3.5 % of pairs saturate"
    assert row(None, "so").verdict == "not applicable: so"
    assert [row(p).reduce_range for p in (fine, lucky, bad, None)] == [False, False, True, False]
    assert bad.seen_share == pytest.approx(40_000 / 32_768)
    assert bad.possible_share == pytest.approx(60_000 / 32_767)
    assert row(fine).possible_share == 0.5


def test_seven_bits_and_fewer_cannot_saturate():
    x = extreme((8, 6))
    (row,) = headroom(quantized(conv(nn.Linear, 6, 4), x, weight=W8.replace(bits=7)), (x,))
    assert row.verdict == "no: impossible by the weights"
    assert not row.reduce_range


@pytest.mark.parametrize(
    ("body", "shape", "weight", "why"),
    [
        pytest.param(conv(nn.Conv2d, 4, 4, 3, groups=4), (4, 5, 5), W8, "depthwise", id="depthwise"),
        pytest.param(
            conv(nn.Linear, 6, 4), (6,), QuantSpec(bits=8, qscheme="per_tensor_affine"), "uint8", id="uint8 weights"
        ),
    ],
)
def test_kernels_without_pairs(body, shape, weight, why):
    x = extreme((4, *shape))
    (row,) = headroom(quantized(body, x, weight=weight), (x,))
    assert row.pairs is None
    assert row.verdict.startswith("not applicable: ")
    assert why in row.verdict
    assert row.seen > 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"mode": "dynamic"}, id="dynamic"),
        pytest.param({"mode": "weight_only"}, id="weight only"),
        pytest.param({"activation": U8.replace(bits=16)}, id="16-bit activations"),
        pytest.param({"activation": QuantSpec(qscheme="per_channel_affine")}, id="activations per channel"),
        pytest.param({"weight": QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=2)}, id="groups"),
    ],
)
def test_layers_without_an_integer_kernel_are_left_out(options):
    x = extreme((8, 6))
    assert headroom(quantized(conv(nn.Linear, 6, 4), x, **options), (x,)) == []


def test_a_choice_of_positions_stays_within_what_all_of_them_hold(residual):
    model, data, calib = residual
    qmodel = qlab.convert(model, qlab.presets["onnxruntime"], calib)
    _, inputs, _ = next(iter(data.evaluation.batches(4)))
    every, some = headroom(qmodel, inputs), headroom(qmodel, inputs, max_positions=50)
    assert [r.layer for r in every] == [r.layer for r in some]
    assert every[0].positions == every[0].of_positions == 4 * 16 * 16
    assert some[0].positions == 50
    assert some == headroom(qmodel, inputs, max_positions=50)
    for all_of, few in zip(every, some, strict=True):
        assert few.seen <= all_of.seen <= all_of.possible == few.possible
        assert all_of.pairs.seen[0] <= few.pairs.seen[0]
        assert few.pairs.seen[1] <= all_of.pairs.seen[1]


def test_inputs_that_do_not_fit_are_refused(residual):
    model, _, calib = residual
    with pytest.raises(DataMismatch):
        headroom(qlab.convert(model, qlab.presets["onnxruntime"], calib), (torch.zeros(2, 3, 16, 16),))


def test_a_real_network_takes_well_under_two_seconds(cifar):
    model, train, test = cifar
    qmodel = qlab.convert(model, qlab.presets["onnxruntime"], qlab.calibrate(model, train))
    _, inputs, _ = next(iter(test.evaluation.batches(8)))
    took = []
    for _ in range(3):
        start = time.perf_counter()
        rows = headroom(qmodel, inputs)
        took.append(time.perf_counter() - start)
    assert min(took) < 1.5
    assert len(rows) == 20
    assert all(0 < row.seen_share < 0.01 for row in rows)


# ---- what the installed runtime does --------------------------------------------------------------------------------

saturating = pytest.mark.skipif(
    cpu_features().saturates_pairs is not True, reason="this CPU has VNNI, or no AVX2: its kernels saturate no pairs"
)
OUT = 2.0**11  # a power of two: the multiplier is then exact, and so is every comparison


def qdq_model(op, shape, w, zero, dtype, attributes):
    """Float in, codes out: quantize, dequantize, op, quantize. Scale 1 of input and weight, OUT of the output."""
    constants = {
        "one": np.float32(1), "x_zero": np.array(zero, dtype), "w": w, "w_zero": np.zeros((), w.dtype),
        "out": np.float32(OUT), "y_zero": np.array(128 if dtype is np.uint8 else 0, dtype),
    }  # fmt: skip
    if w.dtype == np.uint8:
        constants["w_zero"] = np.array(128, np.uint8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "x_zero"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", "one", "x_zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "one", "w_zero"], ["w_float"]),
        helper.make_node(op, ["x_float", "w_float"], ["y_float"], **attributes),
        helper.make_node("QuantizeLinear", ["y_float", "out", "y_zero"], ["y_codes"]),
        helper.make_node("DequantizeLinear", ["y_codes", "out", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "one_layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model, x, tmp_path, precise=False):
    """The output in steps, and the names of the ops that really ran."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
    return session.run(None, {"x": x.astype(np.float32)})[0] / OUT, ran


def channels_first(values, example):
    """[positions, O] of an [N, C, H, W] example to the order of the runtime's output."""
    n, _, h, w = example.shape
    return values.reshape(n, h, w, -1).transpose(0, 3, 1, 2)


KERNELS = [
    pytest.param("MatMul", (5, 37), (7, 37), {}, np.uint8, 0, "QLinearMatMul", id="MatMul"),
    pytest.param("Gemm", (5, 600), (7, 600), {"transB": 1}, np.uint8, 90, "QGemm", id="Gemm, more than one slice of K"),
    pytest.param("Gemm", (1, 37), (7, 37), {"transB": 1}, np.int8, -20, "QGemm", id="Gemm, one row, int8 activations"),
    pytest.param("Conv", (2, 5, 6, 6), (7, 5, 3, 3), {}, np.uint8, 0, "QLinearConv", id="Conv, gathered"),
    pytest.param("Conv", (1, 5, 6, 6), (7, 5, 3, 3), {"pads": [1] * 4}, np.uint8, 90, "QLinearConv", id="padded"),
    pytest.param("Conv", (1, 8, 6, 6), (16, 8, 3, 3), {"pads": [1] * 4}, np.uint8, 90, "QLinearConv", id="symmetric"),
    pytest.param("Conv", (1, 16, 4, 4), (16, 16, 1, 1), {}, np.int8, -20, "QLinearConv", id="pointwise, int8"),
    pytest.param("Conv", (1, 6, 6, 6), (8, 3, 3, 3), {"group": 2}, np.uint8, 90, "QLinearConv", id="grouped"),
    pytest.param("Conv", (1, 6, 6, 6), (12, 1, 3, 3), {"group": 6}, np.uint8, 90, "QLinearConv", id="one in, two out"),
    pytest.param(
        "Conv", (1, 4, 7, 7), (6, 4, 2, 2), {"strides": [2, 2], "dilations": [2, 2]}, np.uint8, 0, "QLinearConv",
        id="strided and dilated",
    ),
]  # fmt: skip


def layer_case(op, shape, w_shape, attributes, dtype, zero, w_dtype=np.int8):
    """A layer full of large codes: its model, input, exact steps and the steps that saturated pairs leave."""
    r = np.random.default_rng(11)
    info = np.iinfo(dtype)
    codes = r.integers(info.max - 70, info.max + 1, shape)
    w = r.integers(-128, 128, w_shape).astype(np.int8)
    groups = attributes.get("group", 1)
    moved = 128 if dtype is np.int8 else 0
    none = np.zeros(len(w), dtype=np.int64)
    if op == "Conv":
        geometry = (
            attributes.get("strides", (1, 1)), attributes.get("pads", (0, 0))[:2], attributes.get("dilations", (1, 1)),
        )  # fmt: skip
        window = windows(codes, w_shape[2:], *geometry, zero)
    else:
        window = codes
    sums, pairs, lost = by_hand(window, w, groups, zero, none, moved, none)
    kept = w if op != "MatMul" else np.ascontiguousarray(w.T)
    if w_dtype is np.uint8:
        kept = (kept.astype(np.int64) + 128).astype(np.uint8)
    model = qdq_model(op, list(shape), kept, zero, dtype, attributes)
    low, high = (-128, 127)
    exact, cut = (np.rint(v / OUT).clip(low, high) for v in (sums, sums + lost))
    return model, codes - zero, exact, cut, pairs


@saturating
@pytest.mark.peers
@pytest.mark.parametrize(("op", "shape", "w_shape", "attributes", "dtype", "zero", "kernel"), KERNELS)
def test_the_runtime_loses_exactly_what_saturated_pairs_lose(
    op, shape, w_shape, attributes, dtype, zero, kernel, tmp_path
):
    """Bit for bit, so order of the products, pairs and offset are those the runtime has."""
    model, x, exact, cut, _ = layer_case(op, shape, w_shape, attributes, dtype, zero)
    given, ran = run(model, x, tmp_path)
    assert kernel in ran
    if op == "Conv":
        exact, cut = channels_first(exact, given), channels_first(cut, given)
    assert (exact != cut).any()
    np.testing.assert_array_equal(given, cut)
    precise, ran = run(model, x, tmp_path, precise=True)
    assert kernel in ran
    np.testing.assert_array_equal(precise, exact)


@saturating
@pytest.mark.peers
@pytest.mark.parametrize(
    ("shape", "w_shape", "attributes", "w_dtype"),
    [
        pytest.param((1, 16, 6, 6), (16, 1, 3, 3), {"group": 16}, np.int8, id="depthwise, 16 channels"),
        pytest.param((1, 5, 6, 6), (5, 1, 3, 3), {"group": 5}, np.int8, id="depthwise, 5 channels"),
        pytest.param((1, 8, 6, 6), (16, 8, 3, 3), {}, np.uint8, id="uint8 weights"),
    ],
)
def test_the_runtime_is_exact_where_its_kernel_makes_no_pairs(shape, w_shape, attributes, w_dtype, tmp_path):
    model, x, exact, cut, _ = layer_case("Conv", shape, w_shape, attributes, np.uint8, 0, w_dtype)
    given, ran = run(model, x, tmp_path)
    assert "QLinearConv" in ran
    assert (exact != cut).any()
    np.testing.assert_array_equal(given, channels_first(exact, given))


@saturating
@pytest.mark.peers
def test_seven_bits_are_exact(tmp_path):
    r = np.random.default_rng(2)
    w = r.integers(-64, 64, (6, 40)).astype(np.int8)
    codes = r.integers(180, 256, (5, 40))
    given, ran = run(qdq_model("Gemm", [5, 40], w, 0, np.uint8, {"transB": 1}), codes, tmp_path)
    assert "QGemm" in ran
    np.testing.assert_array_equal(given, np.rint(codes @ w.astype(np.int64).T / OUT).clip(-128, 127))
