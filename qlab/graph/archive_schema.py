"""The JSON of a `.pt2`: typed access to its fields, and the strings in it that torch.export.load would evaluate.

Nothing here evaluates anything. A field of a wrong type is a BadUpload that names the field; a string that is not the
plain arithmetic torch writes is an UnsafeFile.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

import torch

from qlab.errors import BadUpload, UnsafeFile, UnsupportedModel

EXPORT_LINES = """\
import torch
model.eval()
program = torch.export.export(
    model, (example_input,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},)
)
torch.export.save(program, "model.pt2")"""

MAX_DEPTH = 64
MAX_TEXT = 200_000  # a stack trace is the longest text torch writes
MAX_EXPRESSION = 20_000

# torch/_export/serde/schema.py, ScalarType. No complex and no float8: nothing in the lab computes with them.
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    34: torch.uint32,
    35: torch.uint64,
}
STRIDED = 7
MEMORY_FORMATS: dict[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


def shown(text: str) -> str:
    """A string of the file as it may stand in a message: short, and with nothing that acts on a terminal or page."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def damaged(where: str, found: str) -> NoReturn:
    raise BadUpload(f"The model file is damaged: {where} {found}. Export the model again with torch.export.save.")


def as_record(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        damaged(where, f"should be an object and is {type(value).__name__}")
    return value


def as_list(value: object, where: str, limit: int = 1_000_000) -> list[object]:
    if not isinstance(value, list):
        damaged(where, f"should be a list and is {type(value).__name__}")
    if len(value) > limit:
        damaged(where, f"has {len(value):,} entries, more than {limit:,}")
    return value


def as_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        damaged(where, f"should be a text and is {type(value).__name__}")
    return value


def as_int(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        damaged(where, f"should be an integer and is {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        damaged(where, "is an integer of more than 64 bits")
    return value


def as_bool(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        damaged(where, f"should be true or false and is {type(value).__name__}")
    return value


def as_float(value: object, where: str) -> float:
    """JSON has no infinities, so torch writes them, and NaN, as texts."""
    if isinstance(value, str):
        if value not in ("Infinity", "-Infinity", "NaN"):
            damaged(where, f"should be a number and is {shown(value)}")
        return float(value.replace("Infinity", "inf"))
    if isinstance(value, float):
        return value
    return float(as_int(value, where))


def field(record: dict[str, object], key: str, where: str) -> object:
    if key not in record:
        damaged(where, f"has no field {key!r}")
    return record[key]


def record_at(record: dict[str, object], key: str, where: str) -> dict[str, object]:
    return as_record(field(record, key, where), f"{where}.{key}")


def list_at(record: dict[str, object], key: str, where: str) -> list[object]:
    return as_list(field(record, key, where), f"{where}.{key}")


def text_at(record: dict[str, object], key: str, where: str) -> str:
    return as_text(field(record, key, where), f"{where}.{key}")


def union(value: object, where: str) -> tuple[str, object]:
    """torch writes a choice as an object with one key, the name of the case."""
    record = as_record(value, where)
    if len(record) != 1:
        damaged(where, f"should have one field and has {len(record)}")
    return next(iter(record.items()))


def plain_int(value: object, where: str) -> int:
    """A SymInt that has to be a number, as all sizes of weights are."""
    case, content = union(value, where)
    if case != "as_int":
        damaged(where, f"should be a plain size and is {shown(case)}")
    return as_int(content, where)


def dtype_of(value: object, where: str) -> torch.dtype:
    code = as_int(value, where)
    if code not in DTYPES:
        raise BadUpload(
            f"The model file has a tensor of a number type the lab does not compute with ({where}: type {code}; "
            "complex numbers and 8-bit floats are such types). Convert the model to float32 before exporting it."
        )
    return DTYPES[code]


def layout_of(value: object, where: str) -> torch.layout:
    if as_int(value, where) != STRIDED:
        raise UnsupportedModel(
            f"{where} asks for a sparse tensor; the lab computes with dense ones. Use dense tensors."
        )
    return torch.strided


def memory_format_of(value: object, where: str) -> torch.memory_format:
    code = as_int(value, where)
    if code not in MEMORY_FORMATS:
        damaged(where, f"is no memory format: {code}")
    return MEMORY_FORMATS[code]


def parse_json(data: bytes, name: str) -> dict[str, object]:
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        damaged(name, "is nested too deeply")
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise BadUpload(
            f"The model file is damaged: {name} is not JSON. Export the model again with torch.export.save.",
            detail=str(error)[:300],
        ) from error
    return as_record(value, name)


def check_strings(document: dict[str, object]) -> None:
    """Depth and texts of the whole document, and every `expr_str` in it."""
    stack: list[tuple[object, int]] = [(document, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            damaged("models/*.json", f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            if "expr_str" in value:
                check_shape_expression(as_text(value["expr_str"], "expr_str"))
            stack.extend((v, depth + 1) for v in value.values())
        elif isinstance(value, list):
            stack.extend((v, depth + 1) for v in value)
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            damaged("models/*.json", f"holds a text of {len(value):,} characters")


# --- texts that torch.export.load evaluates ---------------------------------------------------------------------------

_NUMBER = r"\d{1,40}(?:\.\d{1,40})?(?:e[-+]?\d{1,3})?"
_SYMBOL = r"Symbol\('[a-z]{1,8}\d{1,9}'(?:, [a-z]{1,20}=(?:True|False)){0,6}\)"
_SHAPE_FUNCTIONS = (
    "Abs Add And BitwiseFn_bitwise_and BitwiseFn_bitwise_or CeilDiv CeilToInt CleanDiv Equality FloatPow FloatTrueDiv "
    "FloorDiv FloorToInt GreaterThan Identity IntTrueDiv LShift LessThan Max Min Mod ModularIndexing Mul Not "
    "OpaqueUnaryFn_sqrt Or Pow PowByNatural PythonMod RShift RoundToInt StrictGreaterThan StrictLessThan ToFloat "
    "TruncToFloat TruncToInt Unequality Where"
).split()
_SHAPE_TOKEN = re.compile(
    rf"(?P<atom>{_SYMBOL}|Integer\(-?\d{{1,40}}\)|Rational\(-?\d{{1,40}}, \d{{1,40}}\)"
    rf"|Float\('-?{_NUMBER}', precision=\d{{1,4}}\)|[a-z]{{1,4}}\d{{1,9}}\b|{_NUMBER}|true\b|false\b)"
    rf"|(?P<call>(?:{'|'.join(_SHAPE_FUNCTIONS)})\()"
    r"|(?P<compare>==|!=|<=|>=|<|>)|(?P<sign>-)|(?P<operator>\*\*|//|[+*/%])|(?P<open>\()|(?P<close>\))|(?P<comma>,)"
)
_GUARD_TOKEN = re.compile(
    r"(?P<atom>L(?:\['[A-Za-z_]\w{0,100}'\]|\[\d{1,6}\]){1,8}(?:\.(?:size|stride)\(\)\[\d{1,3}\]|\.storage_offset\(\))?"
    rf"|{_NUMBER}|True\b|False\b)"
    r"|(?P<call>(?:max|min|int|float|math\.floor|math\.ceil|math\.trunc|math\.sqrt|torch\.sym_float|torch\.sym_int)\()"
    r"|(?P<compare>==|!=|<=|>=|<|>)|(?P<sign>-|not\b)|(?P<operator>\*\*|//|[+*/%]|and\b|or\b)"
    r"|(?P<open>\()|(?P<close>\))|(?P<comma>,)"
)


def _is_arithmetic(text: str, token: re.Pattern[str]) -> bool:
    """True if `text` is operands joined by operators, in balanced parentheses. No recursion, one pass."""
    if len(text) > MAX_EXPRESSION:
        return False
    position, operand_next = 0, True
    opened: list[str] = []
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        match = token.match(text, position)
        if match is None:
            return False
        position, kind = match.end(), match.lastgroup
        if kind in ("open", "call") and operand_next:
            opened.append(str(kind))
        elif kind == "atom" and operand_next:
            operand_next = False
        elif kind == "sign" and (operand_next or match.group() == "-"):
            operand_next = True  # minus between operands, or before one
        elif operand_next:
            return False
        elif kind == "close" and opened:
            opened.pop()
        elif kind in ("operator", "compare") or (kind == "comma" and opened and opened[-1] == "call"):
            operand_next = True
        else:
            return False
    return not operand_next and not opened


def check_shape_expression(text: str) -> None:
    if not _is_arithmetic(text, _SHAPE_TOKEN):
        raise UnsafeFile(
            f"The model file holds a size formula that is not plain arithmetic on sizes: {shown(text)}. PyTorch would "
            "run it as code. Do not open this file with torch.export.load; get the model from a source you trust."
        )


def check_guard(text: str) -> None:
    if not _is_arithmetic(text, _GUARD_TOKEN) or not re.search(r"[=<>]", text):
        raise UnsafeFile(
            f"The model file holds a guard that is not a comparison of input sizes: {shown(text)}. PyTorch would run "
            "it as code. Do not open this file with torch.export.load; get the model from a source you trust."
        )


_AFFINE_SUM = re.compile(r"Add\((?P<inner>.+), Integer\((?P<offset>-?\d{1,18})\)\)")
_AFFINE_PRODUCT = re.compile(r"Mul\(Integer\((?P<factor>\d{1,18})\), (?P<inner>.+)\)")
_ONE_SYMBOL = re.compile(r"(?:Symbol\('(?P<name>[a-z]{1,8}\d{1,9})'[^()]*\)|(?P<bare>[a-z]{1,4}\d{1,9}))")


def affine(text: str) -> tuple[int, str, int] | None:
    """factor, symbol, offset of "factor * symbol + offset"; None if the expression is anything else."""
    offset, factor = 0, 1
    if outer := _AFFINE_SUM.fullmatch(text):
        text, offset = outer["inner"], int(outer["offset"])
    if product := _AFFINE_PRODUCT.fullmatch(text):
        text, factor = product["inner"], int(product["factor"])
    symbol = _ONE_SYMBOL.fullmatch(text)
    return (factor, symbol["name"] or symbol["bare"], offset) if symbol else None
