"""Names in a `.pt2` that may be written into generated code or shown: a file may hold anything."""

from __future__ import annotations

import keyword
import re

from qlab.graph.archive_schema import as_text

# Names that mean something else inside the code torch.fx generates.
_RESERVED = frozenset({"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "math", "operator"})


def identifier(name: str, fallback: str) -> str:
    """A name that may be written into generated code. torch writes identifiers; a file may hold anything."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name) or name.startswith("__"):
        return fallback
    return f"{name}_" if keyword.iskeyword(name) or name in _RESERVED else name


def module_meta(metadata: dict[str, object], where: str) -> dict[str, object]:
    """module_path, module_type and module_call (0 for the first call) from the innermost entry of nn_module_stack.

    An entry is "key,path,type"; the key of a repeated call ends in @1, @2, ...; nodes torch added itself have an entry
    named _empty_nn_module_stack_from_metadata_hook.
    """
    top: dict[str, object] = {"module_path": "", "module_type": "", "module_call": 0}
    stack = metadata.get("nn_module_stack")
    if stack is None:
        return top
    entry = as_text(stack, where).rpartition(";")[2]
    key, comma, rest = entry.partition(",")
    path, second_comma, type_name = rest.rpartition(",")
    if not (comma and second_comma) or key.startswith("_empty_nn_module_stack"):
        return top
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    short = type_name.rpartition(".")[2]
    call = re.search(r"@(\d{1,6})$", key)
    return {
        "module_path": re.sub(r"[^\w.@-]", "_", path)[:300],
        "module_type": short if re.fullmatch(r"\w{1,100}", short) else "",
        "module_call": int(call[1]) if call else 0,
    }
