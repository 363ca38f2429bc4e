"""Nothing is run from a file that was altered, and it is refused by name."""

import contextlib
import copy
import json
import random

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import BadUpload, UnsafeFile
from qlab.export.quantized_file import quantized_bytes
from qlab.export.tensor_file import pack_file, unpack_file
from tests.export.saved_networks import network


@pytest.fixture(scope="session")
def good():
    """The bytes of a file with all kinds of entries."""
    return quantized_bytes(network("sizes and several outputs")[1])


def altered(data, key=None, change=None, tensors=None):
    """The file with one text of its metadata changed (as JSON where it is JSON), or with other tensors."""
    texts, values = unpack_file(data)
    if key is not None:
        is_json = texts[key].startswith(("{", "["))
        document = json.loads(texts[key]) if is_json else texts[key]
        result = change(document)
        document = document if result is None else result
        texts[key] = document if isinstance(document, str) else json.dumps(document)
    return pack_file(texts, (tensors or (lambda v: v))(values))


def node_of(document, op):
    return next(n for n in document["nodes"] if n.get("op") == op)


def constant_of(document):
    return next(n for n in document["nodes"] if "constant" in n)


def set_op(old, new):
    return lambda d: node_of(d, old).update(op=new)


@pytest.mark.parametrize(
    "op",
    ["os.system", "builtins.eval", "torch.ops.aten.linear.default", "aten.linear",
     "aten.linear.__class__", "aten.nonzero.default",
     "aten._reshape_alias.default", "torch.load", "quantized.linear", "aten.from_file.default", "", "_operator.pow"],
)  # fmt: skip
def test_a_call_that_is_not_on_the_list_is_refused_by_name(good, op):
    with pytest.raises(UnsafeFile) as caught:
        qlab.load_quantized(altered(good, "graph", set_op("aten.linear.default", op)))
    assert repr(op) in str(caught.value)
    assert "Nothing was called" in str(caught.value)


def rename(document, old, new):
    return json.loads(json.dumps(document).replace(f'"{old}"', json.dumps(new)))


@pytest.mark.parametrize(
    "name", ["__class__", "forward", "p_x.__init__", "p_" + "x" * 400, "p_a b", "p_ﬁ", "", "training"]
)
def test_a_constant_may_not_take_the_name_of_anything_else(good, name):
    with pytest.raises(BadUpload, match=r"constant with the name|is a text of"):
        qlab.load_quantized(altered(good, "graph", lambda d: rename(d, "p_fc_weight", name)))


CODE = "x, __import__('os').system('touch owned')"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: rename(d, "x", CODE),
        lambda d: rename(d, "linear", CODE),
        lambda d: node_of(d, "aten.linear.default").update(module=CODE, type=CODE),
        lambda d: constant_of(d).update(parameter=CODE),
    ],
    ids=["input", "node", "module", "parameter"],
)
def test_code_in_a_name_is_never_run(good, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(BadUpload):  # refusing it is right too
        loaded = qlab.load_quantized(altered(good, "graph", change))
        loaded(torch.randn(2, 6), torch.randn(2, 4))
        assert "__import__" not in loaded.graph_module.code
    assert not list(tmp_path.iterdir())


def first(document):
    return next(iter(document.values()))


ALTERED = {
    "no format": ("format", lambda d: "pt", "no quantized model"),
    "a later version": ("version", lambda d: "2", "version '2'.*reads version 1"),
    "mapping not JSON": ("mapping", lambda d: "{", "mapping is not JSON"),
    "graph a list": ("graph", lambda d: [], "graph should be an object and is a list"),
    "nested deep": ("graph", lambda d: "[" * 200_000, "nested too deeply|not JSON"),
    "an endless integer": ("weights", lambda d: '{"a": ' + "9" * 5_000 + "}", "weights is not JSON"),
    "a key twice": ("model", lambda d: '{"name": "a", "name": "b"}', "not JSON as the lab writes it"),
    "NaN": ("model", lambda d: '{"name": NaN}', "not JSON as the lab writes it"),
    "no nodes": ("graph", lambda d: d.pop("nodes") and None, "no field 'nodes'"),
    "a node that is a text": ("graph", lambda d: d["nodes"].insert(0, "x"), "node 0 of the graph should be an object"),
    "an undefined name": (
        "graph", lambda d: node_of(d, "aten.linear.default")["args"].__setitem__(0, "ghost"), "'ghost'"),
    "used before it is defined": ("graph", lambda d: d["nodes"].reverse(), "nothing before it defines"),
    "a name twice": ("graph", lambda d: d["nodes"].append(d["nodes"][-1]), "second time"),
    "an unknown argument": (
        "graph", lambda d: node_of(d, "aten.linear.default").update(kwargs={"seed": 1}), "does not take"),
    "an argument twice": (
        "graph", lambda d: node_of(d, "aten.linear.default").update(kwargs={"input": "x"}), "does not take"),
    "an argument of another type": (
        "graph", lambda d: node_of(d, "aten.linear.default")["args"].__setitem__(1, {"float": "1"}), "cannot be built"),
    "an in-place call": (
        "graph", lambda d: node_of(d, "aten.clamp.default").update(op="aten.clamp_.default"), "a tensor in place"),
    "a dtype that is none": (
        "graph", lambda d: d["inputs"][0].update(dtype="quint8"), "'quint8', which is not one of"),
    "a negative size": ("graph", lambda d: d["inputs"][0].update(example=[-1, 6]), "negative size"),
    "sizes that do not fit": (
        "graph", lambda d: d["inputs"][0].update(shape=[None, 7], example=[5, 7]), "does not run"),
    "a size without end": ("graph", lambda d: d["inputs"][0].update(example=[2**62, 6]), "does not run"),
    "no outputs": ("graph", lambda d: d.update(outputs=[]), "cannot be built"),
    "a constant without values": (
        "graph", lambda d: constant_of(d).update(constant="p_no", name=constant_of(d)["constant"]), "values.*p_no"),
    "a rule that is a number": ("mapping", lambda d: d.update(default=8), "rule of the mapping should be an object"),
    "a truth value that is a number": (
        "mapping", lambda d: d["default"]["weight"].update(narrow_range=1_000), "should be true or false"),
    "an observer that is none": (
        "mapping", lambda d: d["default"]["weight"].update(observer="os.system"), "its mapping is none"),
    "a mapping of other bits": ("mapping", lambda d: d["default"]["weight"].update(bits=4), "the mapping asks for -8"),
    "a mapping that quantizes less": ("mapping", lambda d: d.update(default=None), "does not fit its graph"),
    "a mapping without end": (
        "mapping", lambda d: d["by_name"].update((f"l{i}", None) for i in range(400_000)), "use patterns"),
    "no weight": ("weights", lambda d: d.clear(), "no values for the constant|no codes or grid"),
    "bits of another width": ("weights", lambda d: first(d).update(bits=4), "does not hold together"),
    "33 bits": ("weights", lambda d: first(d).update(bits=33), "does not hold together"),
    "an axis that is not there": ("weights", lambda d: first(d).update(axis=7), "axis 7 in 2 dimensions"),
    "groups of zero": ("weights", lambda d: first(d).update(group_size=0), "groups of 0"),
    "a shape without end": ("weights", lambda d: first(d).update(shape=[2**61, 2**61]), "forged|limit"),
    "a weight of whole numbers": ("weights", lambda d: first(d).update(dtype="int8"), "which is no float"),
    "another constant": ("weights", lambda d: first(d).update(constant="p_fc_bias"), "no values for the constant"),
    "an activation of another range": (
        "activations", lambda d: first(d).update(quant_max=15), "the mapping asks for 255"),
    "a note that is a page": (
        "calibration", lambda d: d["notes"].update(fc=["<script>" + "x" * 2_000]), "that a name does not have"),
    "infinite without end": ("calibration", lambda d: d["infinite"].update(x="many"), "should be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_altered_metadata_are_refused_by_name(good, name):
    key, change, match = ALTERED[name]
    data = altered(good, key, change)
    assert data != good
    with pytest.raises(BadUpload, match=match):
        qlab.load_quantized(data)


def without(*names):
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


TENSORS = {
    "no codes": (without("wq_fc_weight.codes"), "no tensor 'wq_fc_weight.codes'"),
    "no scale": (without("aq_x.scale"), "no tensor 'aq_x.scale'"),
    "no bias": (without("p_fc_bias"), "no values for the constant 'p_fc_bias'"),
    "codes cut": (lambda t: t | {"wq_fc_weight.codes": t["wq_fc_weight.codes"][:-1]}, "does not hold together"),
    "codes as floats": (lambda t: t | {"wq_fc_weight.codes": torch.ones(72)}, "does not hold together"),
    "a scale of zero": (lambda t: t | {"aq_x.scale": torch.tensor(0.0)}, "not float32 above 0"),
    "a scale that is NaN": (lambda t: t | {"aq_x.scale": torch.tensor(float("nan"))}, "not float32 above 0"),
    "scales of another number": (lambda t: t | {"wq_fc_weight.scale": torch.ones(3)}, "does not hold together"),
    "activation scales": (
        lambda t: without("aq_x.zero_point")(t | {"aq_x.scale": torch.ones(6)}), "do not fit 'x'"),
    "a float zero point": (lambda t: t | {"aq_x.zero_point": torch.tensor(1.0)}, "one whole number for each scale"),
    "one tensor more": (lambda t: t | {"p_more": torch.ones(3)}, "holds or lacks 'p_more'"),
    "a bias of another length": (lambda t: t | {"p_fc_bias": torch.ones(5)}, "does not run"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_altered_tensors_are_refused_by_name(good, name):
    change, match = TENSORS[name]
    with pytest.raises(BadUpload, match=match):
        qlab.load_quantized(altered(good, tensors=change))


def header(length, rest=b""):
    return length.to_bytes(8, "little") + rest


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a quantized model"),
        (b"\x80\x04\x95cos\nsystem\n", "not a quantized model"),
        (b"PK\x03\x04" + b"\0" * 100, "not a quantized model"),
        (header(2**63, b"{}"), "not a quantized model"),
        (header(3, b"{\xff}"), "not UTF-8"),
        (header(2, b"{}"), "lack the format"),
        (header(2, b"{}") + b"left over", "do not lie as its header says"),
        (header(8, b"{{{{{{{{"), "header is not JSON"),
        (safetensors.torch.save({"x": torch.ones(1)}), "lack the format"),
        (header(46, b'{"__metadata__":{"format":7},"a":{"b":[1,2]}}  '), "should be a text"),
    ],
    ids=["empty", "pickle", "zip", "header without end", "not UTF-8", "no metadata", "left over", "not JSON",
         "weights alone", "a format that is a number"],
)  # fmt: skip
def test_other_files_are_refused_by_name(data, match):
    with pytest.raises(BadUpload, match=match):
        qlab.load_quantized(data)


def test_a_file_that_is_not_there():
    with pytest.raises(BadUpload, match=r"no file 'ghost\.safetensors'"):
        qlab.load_quantized("ghost.safetensors")


def test_a_graph_that_is_not_the_originals_is_refused():
    model, qmodel, _ = network("images")
    data = altered(quantized_bytes(qmodel), "graph", lambda d: node_of(d, "aten.gelu.default").update(kwargs={}))
    assert qlab.load_quantized(data).ledger == qmodel.ledger
    with pytest.raises(BadUpload, match="not the graph of the model whose content hash"):
        qlab.load_quantized(data, model)


# --- any change at all ------------------------------------------------------------------------------------------------


def swallow(data):
    """Anything but a quantized model or a BadUpload fails the test."""
    try:
        loaded = qlab.load_quantized(data)
    except BadUpload:
        return False
    loaded.size.to_dict()
    return True


def test_truncated_files(good):
    assert swallow(good)
    assert not any(swallow(good[:length]) for length in range(0, len(good), max(1, len(good) // 100)))


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_flipped_bytes(good, flips):
    data = bytearray(good)
    for position, value in flips:
        data[position % len(data)] = value
    swallow(bytes(data))


def paths(document, prefix=()):
    yield prefix
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from paths(value, (*prefix, key))


def reach(document, path):
    for key in path:
        document = document[key]
    return document


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.integers(-2, 9) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["x", "y", "linear", "getitem", "p_fc_weight", "float64", "aten.relu.default", "cpu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_field_changed(good, data):
    key = data.draw(
        st.sampled_from(["graph", "graph", "graph", "mapping", "weights", "activations", "calibration", "model"])
    )

    def change(document):
        places = list(paths(document))
        for _ in range(data.draw(st.integers(1, 2))):
            path = data.draw(st.sampled_from(places))
            try:
                holder = reach(document, path[:-1])
                if not path:
                    return data.draw(ANYTHING)
                match data.draw(st.sampled_from(["replace", "drop", "swap"])):
                    case "replace":
                        holder[path[-1]] = data.draw(ANYTHING)
                    case "drop":
                        del holder[path[-1]]
                    case "swap":
                        holder[path[-1]] = copy.deepcopy(reach(document, data.draw(st.sampled_from(places))))
            except (KeyError, IndexError, TypeError):
                pass  # the first change took the place of the second away
        return document

    swallow(altered(good, key, change))


@pytest.mark.parametrize("name", ["images", "GRU, both ways", "LSTM, projected", "attention, causal"])
def test_other_graphs_with_fields_changed(name):
    good, chance = quantized_bytes(network(name)[1]), random.Random(name)

    def change(document):
        path = chance.choice([p for p in paths(document) if p])
        value = chance.choice([None, True, -1, 0, 1, 2, 3, 10**9, 1.5, "x", "", [], [1], ["x"], {}])
        reach(document, path[:-1])[path[-1]] = value

    for _ in range(60):
        swallow(altered(good, "graph", change))
