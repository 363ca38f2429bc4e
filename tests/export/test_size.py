"""Where the bytes of an exported file go: all of them counted, each for the layer that it belongs to."""

import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.export.onnx_file import quantized_onnx
from qlab.export.size import PARTS, file_size
from qlab.samples import sample_names


@pytest.fixture(scope="module", params=sample_names())
def sample(request):
    model, data = qlab.load_model(request.param), qlab.load_dataset(request.param)
    return model, qlab.calibrate(model, data)


@pytest.mark.parametrize("preset", ["x86", "dynamic", "int4_grouped", "w4a8"])
def test_every_byte_is_counted_for_a_layer_of_the_model(sample, preset):
    model, calib = sample
    qmodel = qlab.convert(model, qlab.presets[preset], calib)
    size = file_size(qmodel)
    assert size.total == quantized_onnx(qmodel).proto.ByteSize()
    own = {r.layer for r in qmodel.ledger} | {s.name for s in model.inputs}
    assert set(size.layers) - own <= {"position"}  # a parameter that is added, no layer's weight
    for part in PARTS:
        if part != "graph":
            assert getattr(size, part) == sum(layer.get(part, 0) for layer in size.layers.values())
    assert size.codes + size.waste > 0


def test_parts_of_a_recurrent_layer_are_one_layer():
    model, data = qlab.load_model("lstm_text"), qlab.load_dataset("lstm_text")
    own = file_size(qlab.convert(model, qlab.presets["dynamic"], qlab.calibrate(model, data))).layers["lstm"]
    weights = [p for name, p in model.graph_module.state_dict().items() if "lstm" in name and "weight" in name]
    assert own["codes"] == sum(w.numel() for w in weights)


def test_what_a_container_wastes_is_told_apart():
    model, data = qlab.load_model("conv_digits"), qlab.load_dataset("conv_digits")
    spec = QuantSpec(bits=3, qscheme="per_channel_symmetric")
    mapping = QConfigMapping(default=QConfig(weight=spec, activation=QuantSpec(bits=8)))
    qmodel = qlab.convert(model, mapping, qlab.calibrate(model, data))
    size = file_size(qmodel)
    for layer, tensor in qmodel.weights.items():
        count = tensor.codes.numel()
        assert size.layers[layer]["codes"] == -(-count * 3 // 8)
        assert size.layers[layer]["codes"] + size.layers[layer]["waste"] == -(-count * 4 // 8)
