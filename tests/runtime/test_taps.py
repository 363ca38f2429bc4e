"""The noise of codes is that of the values they stand for, and a graph without its codes is the plain one."""

import numpy as np
import pytest
import torch

import qlab
from qlab.export.assemble import without_codes
from qlab.export.graph_writer import UINT8, activation_container
from qlab.export.onnx_file import quantized_onnx
from qlab.export.values import Codes
from qlab.quant.fake_quant import dequantize, quantize
from qlab.quant.qparams import choose_qparams
from qlab.runtime.kernel_codes import open_codes
from qlab.runtime.session import RuntimeOptions
from qlab.runtime.taps import code_noise, integer_networks


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 4096), (7, 11, 13, 17)], ids=str)
@pytest.mark.parametrize(
    ("bits", "qscheme"),
    [(8, "per_tensor_affine"), (4, "per_tensor_symmetric"), (16, "per_tensor_affine"), (8, "per_channel_affine")],
)
def test_noise_of_codes(shape, bits, qscheme):
    x = torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, size=shape).astype(np.float32))
    qparams = choose_qparams(x, qlab.QuantSpec(bits, qscheme))
    kind, shift = activation_container(qparams.quant_min, qparams.quant_max)
    codes = quantize(x, qparams).numpy().astype(np.int32)
    stored = (codes + shift).astype(np.uint8 if kind == UINT8 else np.uint16)
    values = dequantize(torch.from_numpy(codes), qparams)
    exact = float((x.double() - values.double()).square().sum())
    assert exact > 0
    assert code_noise(stored, Codes("c", "s", "z", qparams, kind, shift), x) == pytest.approx(exact, rel=2e-7)
    assert code_noise(stored, Codes("c", "s", "z", qparams, kind, shift), values) == 0.0


@pytest.mark.parametrize("name", ["residual_digits", "lstm_text", "transformer_text"])
def test_a_graph_without_its_codes_is_the_plain_one(name):
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    calib = qlab.calibrate(model, data.calibration.subset(range(64)))
    for preset in qlab.presets:
        qmodel = qlab.convert(model, qlab.presets[preset], calib)
        laid_open, plain = quantized_onnx(qmodel, codes_as_outputs=True), quantized_onnx(qmodel).proto
        assert without_codes(laid_open).SerializeToString() == plain.SerializeToString(), preset
        assert len(laid_open.proto.graph.output) == len(plain.graph.output) + len(laid_open.codes)


def test_sqnr_on_integers_is_that_of_the_codes_in_float64(residual):
    model, data, calib = residual
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    part = data.evaluation.subset(range(100))
    measured = qlab.evaluate(qmodel, part, batch_size=32, backend="integer").sqnr
    session, signal, noise = open_codes(qmodel), {}, {}
    for _, x, _ in part.batches(32):
        codes = session(*x)
        floats = {}

        class Keep(torch.fx.Interpreter):
            def run_node(self, n, floats=floats):
                result = super().run_node(n)
                floats[n] = result
                return result

        Keep(model.graph_module).run(*x)
        for layer, tensor in qmodel.outputs.items():
            if tensor in codes:
                grid = qmodel.activations[tensor]
                reference = floats[model.node(tensor)].double()
                values = dequantize(codes[tensor].int(), grid.qparams).double()
                signal[layer] = signal.get(layer, 0.0) + float(reference.square().sum())
                noise[layer] = noise.get(layer, 0.0) + float((reference - values).square().sum())
    assert set(measured) == set(signal)
    for layer, value in measured.items():
        assert value == pytest.approx(10 * np.log10(signal[layer] / noise[layer]), abs=1e-6), layer


def test_there_are_no_taps_where_there_are_no_codes(residual):
    model, data, calib = residual
    qmodel = qlab.convert(model, qlab.presets["int8_weight_only"], calib)
    session, taps = integer_networks(qmodel, RuntimeOptions(1))
    assert taps is None
    assert session.integer
    part = data.evaluation.subset(range(20))
    assert qlab.evaluate(qmodel, part, backend="integer").sqnr == {}
