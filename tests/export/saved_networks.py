"""Small networks whose graphs hold every kind of entry a saved model has, each with a mapping."""

import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from tests.networks import Twice

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
A8 = QuantSpec(bits=8)


class Sizes(nn.Module):
    """Sizes as nodes, arithmetic on them, results of which some are not read, constants, dtypes, several outputs."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 12)
        self.register_buffer("shift", torch.arange(12.0).double())

    def forward(self, x, y):
        a, _, c = self.fc(x).split([4, 4, 4], 1)
        low = (a + y.flatten()[: 4 * x.shape[0]].reshape(x.shape[0], 4)).clamp(min=-1.5)
        kept = torch.where(low > 0, low, torch.full_like(low, -float("inf")))
        table = torch.ones(x.shape[0] * 2, 4, dtype=torch.float32)[: x.shape[0]]
        return torch.softmax(kept + table, -1), (c.double() + self.shift[:4]).to(torch.float32)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        a = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        return self.inside(a, x, x, need_weights=False)[0] @ self.mix


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 2, stride=2)
        self.conv = nn.Conv2d(4, 6, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.small = nn.Conv2d(6, 6, 1, groups=3)
        self.gain = nn.Parameter(torch.randn(6, 1, 1, dtype=torch.bfloat16))
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        x = torch.relu_(self.norm(self.conv(nn.functional.interpolate(self.up(x), scale_factor=2.0))))
        x = self.small(x) + self.gain * 2
        return nn.functional.gelu(x, approximate="tanh").mean((2, 3))


def spec(bits, qscheme, **more):
    return QuantSpec(bits=bits, qscheme=qscheme, **more)


def every(weight, activation=None, mode="static", **rules):
    return QConfigMapping(default=QConfig(weight=weight, activation=activation, mode=mode), **rules)


NETWORKS = {
    "shared weight": (Twice, ((4, 8),), every(W8, A8)),
    "shared weight, two specs": (
        Twice, ((4, 8),),
        every(W8, A8, by_name={"fc@1": QConfig(weight=spec(3, "per_tensor_affine"), mode="weight_only")}),
    ),
    "shared weight, one float": (Twice, ((4, 8),), every(W8, A8, by_name={"fc@1": None})),
    "sizes and several outputs": (Sizes, ((5, 6), (5, 4)), every(W8, A8)),
    "attention, causal": (Attention, ((3, 5, 8),), every(W8, A8)),
    "images": (Image, ((3, 2, 5, 5),), every(W8, A8)),
    "images, types and weights alone": (
        Image, ((3, 2, 5, 5),),
        QConfigMapping(by_type={"conv2d": QConfig(spec(5, "per_channel_affine"), mode="weight_only")}),
    ),
    "images, groups": (
        Image, ((3, 2, 5, 5),),
        QConfigMapping(by_type={"conv2d": QConfig(spec(2, "per_group_affine", group_size=2), A8)}),
    ),
    "16-bit activations": (Twice, ((4, 8),), every(spec(7, "per_tensor_affine"), spec(16, "per_tensor_affine"))),
    "activations per channel": (Image, ((3, 2, 5, 5),), every(W8, spec(6, "per_channel_affine"))),
    "narrow, unsigned, unmatched": (
        Twice, ((4, 8),),
        every(
            spec(4, "per_channel_symmetric", narrow_range=True),
            spec(8, "per_tensor_symmetric", signed=False, observer="percentile", observer_args={"percentile": 99.5}),
            by_name={"nowhere.*": None},
        ),
    ),
    "GRU, both ways": (lambda: nn.GRU(4, 6, 2, bidirectional=True), ((5, 3, 4),), every(W8, A8, "dynamic")),
    "LSTM, projected": (lambda: nn.LSTM(4, 6, proj_size=3), ((5, 3, 4),), every(W8, mode="weight_only")),
}  # fmt: skip


def network(name):
    make, shapes, mapping = NETWORKS[name]
    torch.manual_seed(0)
    inputs = tuple(torch.randn(s) for s in shapes)
    model = qlab.load_model(make().eval(), inputs)
    calib = qlab.calibrate(model, qlab.load_dataset(tuple(x.numpy() for x in inputs)))
    return model, qlab.convert(model, mapping, calib), inputs
