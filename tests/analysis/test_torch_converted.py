"""What PyTorch's converted modules hold and which writes reach them: measured, and the facts are those of torch."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from qlab.analysis import torch_converted as tc
from qlab.errors import InvalidConfig, UnsupportedModel

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.peers]
SHAPES = {"Linear": (5, 16), "Conv2d": (4, 3, 3, 2)}
IN_VAIN = ("float weight", "weight attribute", "unpacked", "int_repr", "state_dict")
REACHING = ("load_state_dict", "set_weight_bias")


@pytest.fixture(scope="module")
def facts(_two_threads):
    drawn = torch.Generator().manual_seed(3)
    return {name: tc.torch_converted(torch.randn(*shape, generator=drawn)) for name, shape in SHAPES.items()}


@pytest.fixture(params=SHAPES)
def found(facts, request):
    return facts[request.param]


def test_what_a_converted_linear_stores(facts):
    stored = {one.key: one for one in facts["Linear"].stored}
    assert "layer.weight" not in stored
    packed = stored["layer._packed_params._packed_params"]
    assert packed.holds == "integers"
    assert packed.kind == "tuple (Tensor qint8 [5, 16], Tensor float32 [5])"
    assert stored["layer._packed_params.dtype"].kind == "dtype qint8"
    assert {stored[f"layer.{part}"].holds for part in ("scale", "zero_point")} == {"grid"}


def test_what_a_converted_convolution_stores(facts):
    stored = {one.key: one for one in facts["Conv2d"].stored}
    assert stored["layer.weight"].kind == "Tensor qint8 [4, 3, 3, 2]"
    assert stored["layer.weight"].holds == "integers"


def test_no_float_weight_is_left(found):
    assert not [one for one in found.stored if one.holds == "float weight"]
    assert [one.holds for one in found.stored].count("integers") == 1
    assert found.module == f"torch.ao.nn.quantized.modules.{found.layer.lower().removesuffix('2d')}.{found.layer}"
    assert found.weight_is == "method"


def test_the_integers_can_be_read(found):
    assert found.integers_code == "converted.layer.weight().int_repr()"
    assert (found.low, found.high) != (0, 0)
    assert -128 <= found.low <= found.first <= found.high <= 127
    assert found.count == torch.Size(SHAPES[found.layer]).numel()
    assert found.same_as_qlab == found.count  # minimum and maximum of each channel, symmetric: one formula


@pytest.mark.parametrize("name", IN_VAIN)
def test_writes_that_reach_nothing(found, name):
    attempt = found.attempt(name)
    assert (attempt.held, attempt.stored, attempt.output) == (0, False, 0.0)
    assert not attempt.works
    if name == "weight attribute":
        assert attempt.written is None
        assert attempt.error.startswith("AttributeError: ")
    else:
        assert attempt.error is None
        assert attempt.written > 0  # something was really written somewhere


@pytest.mark.parametrize("name", REACHING)
def test_writes_that_reach_the_module(found, name):
    attempt = found.attempt(name)
    assert attempt.works
    assert attempt.held == attempt.written > 0
    assert attempt.output > 0.01 * found.output
    assert attempt.error is None


def test_one_number_is_one_number(found):
    assert found.attempt("set_weight_bias").held == 1
    assert found.in_qlab.works
    assert (found.in_qlab.written, found.in_qlab.held) == (1, 1)
    assert found.in_qlab.output > 0.01 * found.output


def test_a_layer_by_itself_is_not_converted_at_all(found):
    alone = found.alone
    assert alone.before == alone.after
    assert alone.keys == ("weight", "bias")
    assert alone.float_weight  # its state dict holds the weight from before: nothing was quantized
    assert alone.output > 0  # so writing to it does change the output


def test_the_code_that_is_told_is_the_code_that_ran(found):
    namespace = {"torch": torch}
    state = found.attempt("unpacked").code
    assert state == "weight = converted.layer.weight()\nweight[0] = 0.0"
    codes = torch.tensor([[5, 6]], dtype=torch.int8)
    qmodel = type("Any", (), {"weights": {"layer": type("Any", (), {"codes": codes})}})
    exec(found.in_qlab.code, namespace | {"qmodel": qmodel})
    assert codes.tolist() == [[-128, 6]]
    for attempt in (*found.attempts, found.in_qlab):
        compile(attempt.code, attempt.name, "exec")


def test_per_tensor_engines_are_packed_as_they_are(monkeypatch):
    """qnnpack, the engine on ARM, has one scale for the whole weight."""
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no qnnpack")
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    found = tc.torch_converted(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))
    assert found.engine == "qnnpack"
    assert "_make_per_tensor_quantized_tensor" in found.attempt("set_weight_bias").code
    assert found.attempt("set_weight_bias").held == 1


def test_nothing_global_is_left_changed(facts):
    before = torch.get_rng_state(), torch.backends.quantized.engine, list(warnings.filters)
    weight = torch.ones(3, 4)
    tc.torch_converted(weight)
    assert torch.equal(weight, torch.ones(3, 4))
    assert torch.backends.quantized.engine == before[1]
    assert list(warnings.filters) == before[2]
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(InvalidConfig, match="neither of a Linear nor of a Conv2d"):
        tc.torch_converted(torch.zeros(shape))


def test_a_torch_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(UnsupportedModel, match=r"has no torch\.ao\.quantization \(.*import"):
        tc.torch_converted(torch.zeros(2, 2))
