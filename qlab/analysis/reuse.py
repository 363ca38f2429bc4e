"""Several networks over the same batch: what they compute alike is computed once.

Every node of a graph gets a number that says what it computes: two nodes with the same number apply the same op with
the same constants to the same inputs. A base network is run whole; a variant of it then takes from there whatever has
the base's number, and runs only what is behind a difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlab.analysis.quick import Quick
from qlab.graph.integer_sums import ProductScale

Values = dict[int, Any]

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}


class Numbering:
    """Numbers for what nodes compute, the same for all graphs that are asked about.

    constant: the numbers that no input has a part in. held: values of such numbers, computed once for all batches.
    """

    def __init__(self) -> None:
        self.constant: set[int] = set()
        self.held: Values = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._described: dict[int, tuple[Any, Any]] = {}  # id -> the object, which so stays alive, and its content

    def of(self, gm: fx.GraphModule) -> dict[fx.Node, int]:
        """Each node's number."""
        found: dict[fx.Node, int] = {}
        inputs = 0
        for node in gm.graph.nodes:
            key: tuple[Any, ...]
            if node.op == "placeholder":
                key, inputs = ("input", inputs), inputs + 1
            elif node.op == "get_attr":
                key = ("constant", self._describe(getattr(gm, str(node.target))))
            else:
                what = self._describe(gm.get_submodule(str(node.target))) if node.op == "call_module" else node.target
                given = fx.node.map_arg((node.args, node.kwargs), lambda n: _Number(found[n]))
                key = (node.op, what, repr(given))
            found[node] = self._numbers.setdefault(key, len(self._numbers))
            given_by = node.all_input_nodes
            # A function of nothing (zeros, a random number) is left alone: what it gives may be written to.
            if node.op == "get_attr" or (
                (given_by or node.op == "call_module") and all(found[n] in self.constant for n in given_by)
            ):
                self.constant.add(found[node])
        return found

    def _describe(self, value: Any) -> Any:
        if not isinstance(value, Tensor | nn.Module):
            if isinstance(value, tuple | list):
                return tuple(self._describe(v) for v in value)
            if isinstance(value, Mapping):
                return tuple((k, self._describe(v)) for k, v in value.items())
            return getattr(value, "__qualname__", None) or repr(value)
        known = self._described.get(id(value))
        if known is None:
            if isinstance(value, Tensor):
                held = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                content: Any = (str(value.dtype), tuple(value.shape), hashlib.sha256(held).digest())
            else:
                parts = {k: v for k, v in vars(value).items() if k not in _OF_EVERY_MODULE and v is not None}
                content = (type(value).__qualname__, self._describe(parts))
            known = self._described[id(value)] = (value, content)
        return known[1]


class _Number(int):
    """Tells a node's number from a number that is an argument."""

    def __repr__(self) -> str:
        return f"%{int(self)}"


@dataclass(frozen=True)
class Step:
    """One node to run. done_with: nodes that nobody reads after it."""

    node: fx.Node
    number: int
    done_with: tuple[fx.Node, ...]


class Plan:
    """What of a network has to run to get some of its nodes, when the values of some numbers are known.

    taken: the known numbers it reads. gives: tells what the network computes; equal for plans with equal outputs.
    wanted: nodes to give; None: the output of the network. numbering: who numbered; what depends on constants alone is
    then computed once for all its plans. quick: see `analysis.quick`; nothing on the way can be kept then.
    """

    def __init__(
        self, gm: fx.GraphModule, numbers: Mapping[fx.Node, int], known: Collection[int] = (),
        wanted: Iterable[fx.Node] | None = None, numbering: Numbering | None = None, *, quick: bool = False,
    ):  # fmt: skip
        self.gm, self.numbers = gm, numbers
        self.output = gm.graph.output_node()
        self.gives = repr(fx.node.map_arg(self.output.args, lambda n: _Number(numbers[n])))
        ends = [self.output] if wanted is None else list(wanted)
        self._inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
        needed: set[fx.Node] = set()
        taken: set[fx.Node] = set()
        todo = [n for end in ends for n in ([end] if end is not self.output else end.all_input_nodes)]
        while todo:
            node = todo.pop()
            if node in needed or node in taken:
                continue
            if numbers[node] in known and node.op != "placeholder":
                taken.add(node)
                continue
            needed.add(node)
            todo += node.all_input_nodes
        self._from_known = {n: numbers[n] for n in taken}
        self.taken = frozenset(self._from_known.values())
        order = [n for n in gm.graph.nodes if n in needed and n.op != "placeholder"]
        kept = set(ends) | (set(self.output.all_input_nodes) if wanted is None else set())
        last: dict[fx.Node, fx.Node] = {}
        for node in order:
            last.update(dict.fromkeys(node.all_input_nodes, node))
        finished: dict[fx.Node, list[fx.Node]] = {}
        for node, reader in last.items():
            if node not in kept:
                finished.setdefault(reader, []).append(node)
        self.steps = [Step(n, numbers[n], tuple(finished.get(n, ()))) for n in order]
        self._held: Values = {} if numbering is None else numbering.held
        self._constant = lasting(gm, numbers) & numbering.constant if numbering is not None else frozenset()
        # What is held for all plans is held as it is: another one reads it in another way.
        self._quick = Quick(gm, [n for n in order if numbers[n] not in self._constant], kept) if quick else None

    def sizes(self, inputs: tuple[Tensor, ...]) -> dict[int, int]:
        """Bytes of what each step gives for these inputs, by number."""
        found: dict[int, int] = {}
        self._run(inputs, {}, lambda step, value: found.__setitem__(step.number, _bytes(value)))
        return found

    def run(self, inputs: tuple[Tensor, ...], known: Mapping[int, Any], keep: Collection[int] = ()) -> Values:
        """Values of the nodes that were asked for, by number; with `keep`, of these numbers too. `known` is read only.

        What an op overwrites in place is never among what is kept.
        """
        out: Values = {}

        def see(step: Step, value: Any) -> None:
            if step.number in keep:
                out[step.number] = value

        self._run(inputs, known, see)
        return out

    def _run(self, inputs: tuple[Tensor, ...], known: Mapping[int, Any], see: Callable[[Step, Any], None]) -> None:
        at: dict[fx.Node, Any] = dict(zip(self._inputs, inputs, strict=True))
        at.update({node: known[number] for node, number in self._from_known.items()})
        with torch.no_grad():
            for step in self.steps:
                at[step.node] = value = self._value(step, at)
                see(step, value)
                for node in step.done_with:
                    at.pop(node, None)
        self._at = at

    def _value(self, step: Step, at: Mapping[fx.Node, Any]) -> Any:
        if step.number not in self._constant:
            return self._call(step.node, at)
        if step.number not in self._held:
            self._held[step.number] = self._call(step.node, at)
        return self._held[step.number]

    def result(self) -> Any:
        """The output of the network in the last run."""
        return fx.node.map_arg(self.output.args[0], lambda n: self._given(self.output, n, self._at))

    def value(self, node: fx.Node) -> Any:
        """What a node that was asked for gave in the last run."""
        return self._at[node]

    def _call(self, node: fx.Node, at: Mapping[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return getattr(self.gm, str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._given(node, n, at))
        if self._quick is not None and args:
            done, value = self._quick.call(node, args[0])
            if done:
                return value
        if node.op == "call_module":
            return self.gm.get_submodule(str(node.target))(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _given(self, node: fx.Node, source: fx.Node, at: Mapping[fx.Node, Any]) -> Any:
        return at[source] if self._quick is None else self._quick.given(node, source, at[source])


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


def lasting(gm: fx.GraphModule, numbers: Mapping[fx.Node, int]) -> frozenset[int]:
    """The numbers whose values stay as they were computed: all but those that the next op overwrites."""
    gone = {
        numbers[source]
        for node in gm.graph.nodes
        if node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), ProductScale)
        for source in node.all_input_nodes
    }
    return frozenset(numbers.values()) - gone
