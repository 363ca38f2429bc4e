"""Tensors that torch saved, read without torch.

Not by torch.load: weights_only is not a sandbox, it takes more than data needs (state_dicts, sparse and nested tensors,
storages on devices), and it builds what a file describes before its size can be looked at: with strides of 0 a few
bytes are a tensor of any size. The few opcodes that a file of plain tensors needs are interpreted in `_tensor_pickle`;
every other is refused. A page that only shows data needs no torch either.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from qlab.errors import BadUpload, UnsafeFile
from qlab.readers.common import (
    Limits,
    are_sizes,
    check_array_count,
    check_unpacked,
    checked_bytes,
    from_bfloat16,
    model_advice,
    parsing,
    shape_text,
    size_text,
    values_at,
)
from qlab.readers.zips import entry_bytes, inner_name, open_zip

# The pickle of a thousand tensors takes half of this; one of this size is interpreted in about a second.
_MAX_INDEX_BYTES = 256 * 1024
_STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"), "ByteStorage": np.dtype("u1"), "CharStorage": np.dtype("i1"),
    "ShortStorage": np.dtype("<i2"), "IntStorage": np.dtype("<i4"), "LongStorage": np.dtype("<i8"),
    "BoolStorage": np.dtype(bool),
}  # fmt: skip
_REBUILD, _ORDERED_DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_MARK = object()


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


def read_pt(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    archive, files = open_zip(data, label, limits)
    with archive:
        pickle_name = next(name for name in files if inner_name(name) == "data.pkl")
        prefix = pickle_name.removesuffix("data.pkl")
        if files[pickle_name].file_size > _MAX_INDEX_BYTES:
            raise BadUpload(
                f"{label} has an index of {size_text(files[pickle_name].file_size)}. Save only the tensors."
            )
        order = files.get(prefix + "byteorder")
        if order is not None and entry_bytes(archive, order, label) != b"little":
            raise BadUpload(f"{label} was written on a big-endian machine. Save the data with numpy.savez.")

        total = 0
        storages: dict[_Storage, np.ndarray] = {}

        def tensor(arguments: tuple) -> np.ndarray:
            nonlocal total
            storage, offset, shape, stride = arguments[:4] if len(arguments) >= 6 else (None,) * 4
            if (
                not isinstance(storage, _Storage) or not are_sizes((offset,)) or not are_sizes(shape)
                or not are_sizes(stride) or len(shape) != len(stride)
            ):  # fmt: skip
                raise BadUpload(f"{label} describes a tensor in a way torch.save does not. Save it again.")
            dtype = _STORAGES[storage.kind]
            record = files.get(f"{prefix}data/{storage.key}")
            where = f"{label}, tensor {shape_text(shape)}"
            if record is None or record.file_size != storage.count * dtype.itemsize:
                held = "none" if record is None else f"{record.file_size:,}"
                raise UnsafeFile(
                    f"{where} claims {storage.count * dtype.itemsize:,} bytes of storage and the file holds {held}. "
                    "It is damaged or forged: save the tensors again."
                )
            # A stride of 0 makes a huge tensor out of few bytes, so the unpacked size counts, not the stored one.
            total += checked_bytes(shape, dtype.itemsize, where, limits)
            last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
            check_unpacked(label, total, limits)
            if math.prod(shape) and last >= storage.count:
                raise UnsafeFile(f"{where} reaches beyond its storage. It is damaged or forged: save it again.")
            if not math.prod(shape):
                return np.zeros(shape, np.float32 if storage.kind == "BFloat16Storage" else dtype)
            if storage not in storages:  # thousands of tensors may share one
                storages[storage] = values_at(entry_bytes(archive, record, label), dtype, (storage.count,))
            flat = storages[storage][offset:]
            steps = tuple(step * dtype.itemsize for step in stride)
            array = np.lib.stride_tricks.as_strided(flat, shape, steps).copy()
            return from_bfloat16(array) if storage.kind == "BFloat16Storage" else array

        content = _tensor_pickle(entry_bytes(archive, files[pickle_name], label), label, tensor)
    return _named_arrays(content, label, limits)


def _tensor_pickle(data: bytes, label: str, tensor: Any) -> Any:
    """What a pickle of plain tensors holds. Only the opcodes that it needs exist here; no name is ever looked up."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def put(target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in pairs[::2]):
            raise BadUpload(f"{label} holds a table whose keys are not names. Save a dict of tensors by name.")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    with parsing(label, "the index of the tensors"):
        opcode: Any
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    if len(stack) < count:
                        raise BadUpload(f"{label} has a broken index. Save the tensors again.")
                    stack[-count:] = [tuple(stack[-count:])]
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "APPEND" | "APPENDS":
                    items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                    if not isinstance(stack[-1], list):
                        raise BadUpload(f"{label} has a broken index. Save the tensors again.")
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS":
                    items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                    put(stack[-1], items)
                case "GLOBAL":
                    module, _, name = argument.partition(" ")
                    if argument not in (_REBUILD, _ORDERED_DICT) and not (module == "torch" and name in _STORAGES):
                        _refuse_global(label, f"{module}.{name}")
                    stack.append(_Global(argument))
                case "BINPERSID":
                    stack.append(_storage(stack.pop(), label))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    if function == _Global(_ORDERED_DICT) and arguments == ():
                        stack.append({})
                    elif function == _Global(_REBUILD) and isinstance(arguments, tuple):
                        stack.append(tensor(arguments))
                    else:
                        raise UnsafeFile(
                            f"{label} calls something that a file of tensors has no need to. It is refused."
                        )
                case _:
                    _refuse_global(label, f"the opcode {opcode.name}")
    raise BadUpload(f"{label} has an index without an end. Save the tensors again.")


def _refuse_global(label: str, what: str) -> NoReturn:
    raise UnsafeFile(
        f"{label} asks for {what}, so it is "
        "not a plain file of tensors: a model saved whole, a state_dict or another object; opening it could run code. "
        "For data, save tensors alone: torch.save({'x': x, 'y': y}, 'data.pt') with x.detach().cpu(). " + model_advice()
    )


def _storage(value: Any, label: str) -> _Storage:
    match value:
        case ("storage", _Global(name), str(key), str(), int(count)) if name.startswith("torch ") and count >= 0:
            return _Storage(name.removeprefix("torch "), key, count)
    raise BadUpload(f"{label} describes a storage in a way torch.save does not. Save the tensors again.")


def _named_arrays(content: Any, label: str, limits: Limits) -> dict[str, np.ndarray]:
    if isinstance(content, np.ndarray):
        return {"x": content}
    if isinstance(content, list | tuple) and all(isinstance(item, np.ndarray) for item in content):
        content = {f"x{i}": item for i, item in enumerate(content)} if len(content) != 1 else {"x": content[0]}
    if not isinstance(content, dict):
        raise BadUpload(
            f"{label} holds no tensors. Save a tensor, or a dict of them: torch.save({{'x': x, 'y': y}}, ...)."
        )
    check_array_count(label, len(content), limits)
    arrays: dict[str, np.ndarray] = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif name == "class_names" and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            arrays[name] = np.array(value, dtype=np.str_)
        elif name in ("scale", "mean", "std") and _are_numbers(value):
            arrays[name] = np.array(value, dtype=np.float64)
        else:
            raise BadUpload(f"{label} holds {name!r}, which is no tensor. Save tensors alone, by name.")
    return arrays


def _are_numbers(value: Any) -> bool:
    return all(type(v) in (int, float) for v in (value if isinstance(value, list | tuple) else (value,)))
