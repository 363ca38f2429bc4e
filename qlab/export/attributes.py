"""Attributes of ONNX nodes, typed."""

from __future__ import annotations

import onnx


def find(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)


def text(node: onnx.NodeProto, name: str) -> str:
    found = find(node, name)
    return found.s.decode() if found is not None else ""


def number(node: onnx.NodeProto, name: str, missing: float) -> float:
    found = find(node, name)
    return missing if found is None else float(found.f)


def whole(node: onnx.NodeProto, name: str) -> int:
    found = find(node, name)
    assert found is not None
    return int(found.i)


def integers(node: onnx.NodeProto, name: str) -> list[int]:
    found = find(node, name)
    return [] if found is None else list(found.ints)
