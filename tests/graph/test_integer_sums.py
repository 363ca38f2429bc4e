"""The simulation multiplies codes where an integer kernel would, and its sums are those of integers."""

import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.integer_sums import ProductScale

U8, S8 = QuantSpec(bits=8), QuantSpec(bits=8, qscheme="per_tensor_symmetric", signed=True)
W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
LAYERS = {
    "conv2d": (nn.Conv2d(3, 6, 3, padding=1, stride=2), (3, 9, 9)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2, dilation=2), (4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 7, 7)),
    "conv1d": (nn.Conv1d(3, 5, 3, padding="same"), (3, 11)),
    "linear": (nn.Linear(7, 5), (7,)),
    "linear in a sequence": (nn.Linear(7, 5, bias=False), (4, 7)),
}


def _quantized(layer, shape, config, seed=0):
    torch.manual_seed(seed)
    model = qlab.load_model(nn.Sequential(layer).eval(), example_inputs=(torch.zeros(2, *shape),))
    x = torch.randn(64, *shape)
    calib = qlab.calibrate(model, qlab.load_dataset({"x": x.numpy()}))
    return qlab.convert(model, QConfigMapping(default=config), calib), x


def _sums(qmodel, x):
    """What goes into the scale of the products, and the scale."""
    seen = []
    scale = next(m for m in qmodel.graph_module.modules() if isinstance(m, ProductScale))
    hook = scale.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    qmodel(x)
    hook.remove()
    return seen[0], scale


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("activation", [U8, S8], ids=["uint8", "int8"])
@pytest.mark.parametrize("weight", [W8, QuantSpec(bits=8), W8.replace(bits=3)], ids=["channel", "affine", "3 bits"])
def test_sums_are_those_of_integers(name, activation, weight):
    qmodel, x = _quantized(*LAYERS[name], QConfig(weight=weight, activation=activation))
    sums, scale = _sums(qmodel, x)
    grid = qmodel.activations[qmodel.inputs[0].name]
    codes = (qlab.quantize(x, grid.qparams).long() - grid.zero_point).double()
    held = qmodel.weights["0"]
    shape = [-1, *[1] * (held.codes.ndim - 1)] if held.zero_point.ndim else []
    w = (held.codes.long() - held.zero_point.reshape(shape)).double()
    layer = LAYERS[name][0]
    if isinstance(layer, nn.Linear):
        expected = codes @ w.T
    else:
        conv = nn.functional.conv2d if w.ndim == 4 else nn.functional.conv1d
        expected = conv(codes, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    if layer.bias is not None:
        bias = torch.round(layer.bias.detach().double() / scale.scale.double())
        expected += bias if isinstance(layer, nn.Linear) else bias.reshape(-1, *[1] * (w.ndim - 2))
    assert torch.equal(sums.double(), expected)


@pytest.mark.parametrize(
    "config",
    [
        QConfig(weight=W8, activation=QuantSpec(bits=16)),
        QConfig(weight=QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=7), activation=U8),
    ],
    ids=["16-bit input", "groups"],
)
def test_values_are_summed_where_no_integer_kernel_could(config):
    qmodel, _ = _quantized(nn.Linear(7, 5), (7,), config)
    assert not [m for m in qmodel.graph_module.modules() if isinstance(m, ProductScale)]


def test_a_written_scale_and_code_change_the_result():
    qmodel, x = _quantized(nn.Linear(7, 5), (7,), QConfig(weight=W8, activation=U8))
    weight, before = qmodel.weights["0"], qmodel(x)
    weight.codes[2, 3] = 0
    edited = qmodel(x)
    assert (edited != before).any(0).tolist() == [False, False, True, False, False]
    weight.scale.mul_(0.5)
    assert not torch.equal(qmodel(x), edited)


def test_a_bias_beyond_32_bits_is_added_as_it_is():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-7, 1e-7], [1.0, 1.0]]))
        layer.bias.copy_(torch.tensor([12345.678, 0.5]))
    qmodel, x = _quantized(layer, (2,), QConfig(weight=W8, activation=U8))
    sums, scale = _sums(qmodel, x)
    assert (sums[:, 0] * scale.scale[0]).allclose(torch.tensor(12345.678), rtol=1e-6)
