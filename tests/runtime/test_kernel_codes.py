"""What ONNX Runtime gave for single numbers: the same steps by hand, from its own input integers, give its integers."""

import numpy as np
import pytest
import torch

import qlab
from qlab.export.onnx_file import quantized_onnx
from qlab.preset import presets
from qlab.runtime.kernel_codes import kernel_trace, open_codes
from qlab.runtime.session import RuntimeOptions, open_session
from qlab.runtime.steps import explain_element, explainable_layers

SAMPLES = 48


@pytest.fixture(scope="module")
def seen():
    """(quantized model, inputs, codes) of the first evaluation samples of conv_digits."""
    model, data = qlab.load_model("conv_digits"), qlab.load_dataset("conv_digits")
    qmodel = qlab.convert(model, presets["x86"], qlab.calibrate(model, data))
    _, inputs, _ = next(iter(data.evaluation.batches(SAMPLES)))
    return qmodel, inputs, open_codes(qmodel)(*inputs)


def test_codes_are_those_of_the_file(seen):
    qmodel, inputs, codes = seen
    assert set(codes) == set(qmodel.activations)
    # Independent of the codes laid open: the file that is written gives the values they stand for.
    session = open_session(quantized_onnx(qmodel).proto, RuntimeOptions().for_model(qmodel))
    (output,) = session.run(None, {"x": inputs[0].numpy()})
    grid = qmodel.activations["classifier"]
    values = (codes["classifier"] - grid.zero_point) * grid.scale
    np.testing.assert_allclose(values.numpy(), output, rtol=1e-6)


def test_hand_computation_from_the_kernels_own_inputs_gives_the_kernels_integers(seen):
    qmodel, inputs, codes = seen
    for layer in explainable_layers(qmodel):
        found = kernel_trace(qmodel, layer, inputs, codes)
        rng = np.random.default_rng(3)
        places = [tuple(int(rng.integers(n)) for n in found.trace.shape) for _ in range(40)]
        places += [tuple(int(i) for i in at) for at in found.differing[:10]]
        for at in places:
            assert found.trace.explain(at).code == int(found.codes[at]), (layer, at)


def test_a_difference_before_the_layer_is_followed(seen):
    """Codes pushed by hand: the trace reads them, and the differing elements are the ones it says."""
    qmodel, inputs, codes = seen
    changed = {key: value.clone() for key, value in codes.items()}
    changed["block1.relu"][0, :, 4, 4] += 40
    changed["block2.relu"][0, 5, 4, 4] += 9
    changed["block2.relu"][0, 7, 2, 2] += 3
    found = kernel_trace(qmodel, "block2.conv", inputs, changed)
    assert found.differing[0].tolist() == [0, 5, 4, 4]
    assert [0, 7, 2, 2] in found.differing.tolist()
    by_hand = explain_element(qmodel, "block2.conv", inputs, (0, 5, 4, 4))
    from_changed = found.trace.explain((0, 5, 4, 4))
    centre = by_hand.inputs.shape[1] // 2
    expected = by_hand.inputs.copy()
    expected[:, centre, centre] = np.minimum(expected[:, centre, centre] + 40, 255)
    np.testing.assert_array_equal(from_changed.inputs, expected)
    assert from_changed.accumulator == by_hand.accumulator + int(
        ((from_changed.inputs - by_hand.inputs) * by_hand.weights).sum()
    )


def test_inputs_that_do_not_fit_are_refused(seen):
    qmodel, _, _ = seen
    with pytest.raises(qlab.errors.DataMismatch):
        open_codes(qmodel)(torch.zeros(2, 3))
