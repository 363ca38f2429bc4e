"""No bytes end in anything but a data set or a QLabError."""

import random
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from qlab.data import load_dataset
from qlab.errors import NonFinite, QLabError
from qlab.readers import Limits
from tests.reader_files import X, Y, image, npy, npy_header, npz, parquet, pickle_zip, pt, rezipped, safetensors, zipped

SEEDS = {
    "npy": npy(X.astype(np.float32)),
    "npz": npz(x=X, y=Y, scale=np.array(0.5), class_names=np.array(["a", "b"]), calibration_index=np.array([0])),
    "npz_deflated": npz(compressed=True, x=X.astype(np.float64), y=Y, mean=np.zeros(3)),
    "npz_tags": npz(x=X, y=X[:, 0], label_positions=np.array([2, 2])),
    "safetensors": save_safetensors({"x": torch.ones(2, 3), "y": torch.tensor([0, 1]), "b": torch.ones(2).bfloat16()}),
    "pt": pt({"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.tensor([0, 1, 2]), "mean": [0.0, 1.0]}),
    "csv": b"a,b,class\n1,2.5,dog\n3,-4,cat\n5,6,dog\n",
    "parquet": parquet(pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1, 2], "y": ["x", "z", "x"]})),
    "png": zipped({"cat/1.png": image(), "dog/2.png": image((1, 2, 3))}),
    "png_stored": zipped({"cat/1.png": image(mode="P", colour=3), "dog/2.png": image((1, 2, 3))}, zipfile.ZIP_STORED),
    "jpeg": zipped({"1.jpg": image(kind="JPEG")}, zipfile.ZIP_STORED),
    "bmp": zipped({"1.bmp": image(kind="BMP")}, zipfile.ZIP_STORED),
    "webp": zipped({"1.webp": image(kind="WEBP")}, zipfile.ZIP_STORED),
}
SMALL = Limits(max_file_bytes=1 << 20, max_unpacked_bytes=1 << 24, max_image_pixels=1 << 16)


def swallow(data: bytes) -> bool:
    """Whether these bytes are a data set. Anything but a data set or a QLabError fails the test."""
    try:
        dataset = load_dataset(data, limits=SMALL)
    except QLabError:
        return False
    dataset.describe()
    dataset.example(0)
    return True


@pytest.mark.parametrize("name", SEEDS)
def test_seed_files_are_whole(name):
    assert swallow(SEEDS[name])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_truncated_files(name):
    data = SEEDS[name]
    for length in range(0, len(data), max(1, len(data) // 150)):
        swallow(data[:length])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_files(name):
    chance = random.Random(name)
    for _ in range(150):
        data = bytearray(SEEDS[name])
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.choice((0, 0xFF, chance.randrange(256)))
        swallow(bytes(data))


def repacked(name: str, chance: random.Random) -> bytes:
    """A flipped entry in an archive whose checksums are right, so that the flip gets past the zip layer."""

    def flip(_, content: bytes) -> bytes:
        changed = bytearray(content)
        if changed and chance.random() < 0.7:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    return rezipped(SEEDS[name], flip)


@pytest.mark.parametrize("name", ["npz", "npz_tags", "pt", "png", "png_stored", "jpeg", "bmp", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_entries(name):
    chance = random.Random(name)
    for _ in range(200):
        swallow(repacked(name, chance))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_npy_header(data):
    swallow(npy_header("{" + data.decode("latin1") + "}", b"\0" * 16))


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_the_pickle_of_a_pt(data):
    swallow(pickle_zip(b"\x80\x02" + data))


@given(
    st.lists(
        st.sampled_from(
            [
                b"}",
                b"]",
                b")",
                b"(",
                b"u",
                b"s",
                b"e",
                b"a",
                b"t",
                b"\x85",
                b"\x86",
                b"\x87",
                b"q\0",
                b"h\0",
                b"K\x02",
                b"Q",
                b"R",
                b"X\1\0\0\0k",
                b"ctorch\nFloatStorage\n",
                b"N",
                b"\x88",
                b"ctorch._utils\n_rebuild_tensor_v2\n",
                b"ccollections\nOrderedDict\n",
            ]
        ),
        max_size=40,
    )
)
@settings(max_examples=300, deadline=None)  # fmt: skip
def test_any_allowed_opcodes_as_the_pickle_of_a_pt(codes):
    swallow(pickle_zip(b"\x80\x02" + b"".join(codes) + b"."))


def test_deep_nesting_in_a_pt_is_refused():
    swallow(pickle_zip(b"\x80\x02)" + b"\x85" * 60_000 + b"."))
    swallow(pickle_zip(b"\x80\x02})" + b"\x85" * 60_000 + b"K\x01s."))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["x", "dtype", "shape", "data_offsets", "y"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    header=st.dictionaries(
        st.text(max_size=4),
        JSON
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BF16", "BOOL"]),
                "shape": st.lists(st.integers(-1, 4), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2),
            }
        ),
        max_size=3,
    )
)
@settings(max_examples=200, deadline=None)  # fmt: skip
def test_any_json_as_safetensors_header(header):
    swallow(safetensors(header, b"\1" * 32))


@given(st.text(alphabet="ab12,;\n\r\t\"' .-einfy", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_as_csv(text):
    swallow(text.encode())


def test_nan_bit_patterns_of_any_kind_are_named():
    for dtype, bits in ((np.float32, 0x7FA00000), (np.float64, 0x7FF4000000000000), (np.float16, 0x7D00)):
        values = np.zeros((3, 2), dtype)
        values[1, 1] = np.array([bits], f"u{values.itemsize}").view(dtype)[0]
        with pytest.raises(NonFinite, match="sample 1"):
            load_dataset(npy(values))
