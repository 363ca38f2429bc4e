"""A weight that several ops read, in ONNX Runtime."""

import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QuantSpec
from tests.networks import Twice


class TwiceConvolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


class Tied(nn.Module):
    """A table whose rows are looked up and whose columns are multiplied, twice."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 20)

    def forward(self, x):
        x = self.table(x).mean(1)
        return nn.functional.linear(torch.relu(nn.functional.linear(x, self.table.weight)), self.table.weight)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("scheme", ["per_tensor_symmetric", "per_channel_symmetric"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("net", [Twice, TwiceConvolved, Tied])
def test_a_weight_that_is_read_twice_runs(net, bits, scheme, mode):
    torch.manual_seed(0)
    x = {Twice: torch.randn(64, 8), TwiceConvolved: torch.randn(64, 8, 4, 4), Tied: torch.randint(0, 20, (64, 5))}[net]
    model, data = qlab.load_model(net().eval(), x[:4]), qlab.load_dataset(x.numpy())
    config = QConfig(QuantSpec(bits, scheme), None if mode == "weight_only" else QuantSpec(), mode)
    qmodel = qlab.convert(model, qlab.QConfigMapping(default=config), qlab.calibrate(model, data))
    given, simulated = qmodel.integer_session()(x), qmodel(x)
    # a code of what is ranged at every call may fall on the other side of a tie
    allowed = 0.02 * simulated.abs().max() if mode == "dynamic" else 1e-5
    assert (given - simulated).abs().max() <= allowed
