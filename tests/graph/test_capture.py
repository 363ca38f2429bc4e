"""Capture and lowering: the same results, with the names people know."""

import pytest
import torch
from torch import nn

import qlab
from qlab.errors import DataMismatch, UnsupportedModel
from qlab.samples import sample_names
from tests.networks import Twice

torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(self.drop(self.relu(y)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, causal=False, mask=False):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.causal, self.mask = causal, mask

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.mask else None
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)


class Products(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return x @ self.w.t() + torch.matmul(x, self.w.t().contiguous().detach()), nn.functional.linear(x, self.w)


def randomise_batch_norm(module):
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.affine:
                nn.init.uniform_(m.weight, -2, 2)
                nn.init.normal_(m.bias)
            m.running_mean.normal_()
            m.running_var.uniform_(0.1, 4)
    return module.eval()


CASES = {
    "residual": (Residual, (3, 8, 8)),
    "attention": (Attention, (5, 8)),
    "causal attention": (lambda: Attention(causal=True), (5, 8)),
    "masked attention": (lambda: Attention(mask=True), (5, 8)),
    "products with a constant": (Products, (8,)),
    "a module called twice": (Twice, (8,)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "conv1d bn": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU()), (4, 9)),
    "conv3d bn": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (2, 5, 5, 5)),
    "transposed conv bn": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), (4, 5, 5)),
    "grouped transposed conv bn": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6)),
        (4, 5, 5),
    ),
    "grouped conv bn": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (4, 5, 5)),
    "linear bn": (lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), (8,)),
    "bn without affine": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), (3, 4, 4)),
    "bn first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), (3, 4, 4)),
    "lstm": (lambda: nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True), (5, 4)),
    "gru": (lambda: nn.GRU(4, 6, batch_first=True), (5, 4)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_lowered_graph_computes_the_same(case):
    make, shape = case
    module = randomise_batch_norm(make())
    model = qlab.load_model(module, torch.randn(2, *shape))
    for batch in (2, 5):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected = module(x)
        got = model(x)
        for a, b in zip(*(_flat(t) for t in (expected, got)), strict=False):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in _flat(v)]


def test_layers_carry_module_names_and_batch_norm_is_gone():
    model = qlab.load_model(randomise_batch_norm(Residual()), torch.randn(2, 3, 8, 8))
    assert [(layer.name, layer.op) for layer in model.layers] == [
        ("conv1", "conv2d"),
        ("relu", "relu"),
        ("conv2", "conv2d"),
        ("add", "add"),
        ("relu@1", "relu"),
        ("mean", "avg_pool"),
        ("fc", "linear"),
    ]
    assert model.folded == ["bn1 into conv1", "bn2 into conv2"]
    conv1, fc = model.layers[0], model.layers[-1]
    assert (conv1.weight_shape, conv1.parameters, conv1.macs) == ((8, 3, 3, 3), 216 + 8, 8 * 8 * 216)
    assert (fc.weight_shape, fc.parameters, fc.macs) == ((4, 8), 36, 32)
    assert model.parameter_count == 224 + (8 * 8 * 9 + 8) + 36


def test_bn_that_cannot_be_folded_stays():
    model = qlab.load_model(randomise_batch_norm(CASES["bn first"][0]()), torch.randn(2, 3, 4, 4))
    assert [layer.op for layer in model.layers] == ["batch_norm", "conv2d"]


def test_attention_is_written_out():
    model = qlab.load_model(Attention(causal=True).eval(), torch.randn(2, 5, 8))
    ops = [layer.op for layer in model.layers if layer.op != "reshape"]
    assert ops == ["linear", "matmul", "mul", "mask", "softmax", "matmul"]


def test_constant_products_are_linears():
    model = qlab.load_model(Products().eval(), torch.randn(2, 8))
    assert [layer.op for layer in model.layers].count("linear") == 3


def test_content_hash_follows_content_alone(tmp_path):
    module = randomise_batch_norm(Residual())
    first = qlab.load_model(module, torch.randn(2, 3, 8, 8))
    again = qlab.load_model(module, torch.randn(2, 3, 8, 8))
    assert first.content_hash == again.content_hash
    with torch.no_grad():
        module.fc.weight[0, 0] += 1e-3
    assert qlab.load_model(module, torch.randn(2, 3, 8, 8)).content_hash != first.content_hash


def test_a_fixed_batch_is_known():
    module = nn.Linear(4, 2).eval()
    archive = torch.export.export(module, (torch.randn(3, 4),))
    import io

    buffer = io.BytesIO()
    torch.export.save(archive, buffer)
    model = qlab.load_model(buffer.getvalue())
    assert model.fixed_batch == 3
    with pytest.raises(DataMismatch, match=r"\[2, 4\].*\[3, 4\]"):
        model.check_inputs([torch.randn(2, 4)])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([torch.zeros(2, 3, 8, 9)], r"\[2, 3, 8, 9\].*any, 3, 8, 8"),
        ([torch.zeros(2, 3, 8)], "expects"),
        ([torch.zeros(2, 3, 8, 8, dtype=torch.int64)], "int64.*float32"),
        ([], "1 inputs"),
    ],
    ids=["size", "axes", "dtype", "number"],
)
def test_wrong_inputs_are_named(inputs, says):
    model = qlab.load_model(Residual().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(DataMismatch, match=says):
        model.check_inputs(inputs)


def test_train_mode_is_refused_with_the_remedy():
    with pytest.raises(UnsupportedModel, match="eval"):
        qlab.load_model(Residual().train(), torch.randn(4, 3, 8, 8))


def test_train_mode_without_consequence_is_fine():
    assert qlab.load_model(nn.Linear(4, 2), torch.randn(2, 4)).layers[0].op == "linear"


def test_control_flow_on_values_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModel, match="Branch"):
        qlab.load_model(Branch().eval(), torch.randn(2, 4))


def test_a_write_through_a_view_is_refused():
    class Overlap(nn.Module):
        def forward(self, x):
            y = x * 1.0
            y[:, :2] += 1.0
            return y

    with pytest.raises(UnsupportedModel, match=r"in place|memory"):
        qlab.load_model(Overlap().eval(), torch.randn(2, 4))


def test_example_inputs_are_needed():
    with pytest.raises(UnsupportedModel, match="example_inputs"):
        qlab.load_model(nn.Linear(4, 2))


def test_an_example_of_one_sample_still_gives_a_free_batch():
    assert qlab.load_model(nn.Linear(4, 2).eval(), torch.randn(1, 4)).fixed_batch is None


@pytest.mark.parametrize("name", sample_names())
def test_every_sample_loads(name):
    model = qlab.load_model(name)
    assert model.name == name
    assert sum(layer.macs for layer in model.layers) > 0
    assert len({layer.name for layer in model.layers}) == len(model.layers)
