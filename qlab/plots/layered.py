"""Where the boxes of a graph stand, and how its lines run between them: in layers from top to bottom.

Each box stands one layer below the lowest it reads (longest path). A line that passes layers gets a free place in each
of them, so it runs through no box. The order within a layer follows the mean of what a box is joined to (barycentre:
Sugiyama et al. 1981), then the places are moved to where lines are straightest without changing the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 1.0, 0.64  # of a box; a layer is 1 high
ROOM = 0.16  # between boxes
LANE = 0.3  # a line beside a box or another line
SWEEPS, STEPS = 12, 32
GRAIN = 0.05  # places are multiples of it: what is nearly straight is straight
SMOOTH = 9  # points of a curve between two layers; odd, so that one is in the middle

Place = str | tuple[str, int]  # a box, or the place in a layer that the lines of a box have to pass it


@dataclass(frozen=True)
class Layout:
    """place: box -> (x of its middle, layer from the top). route: line -> points (x, y), from the lower edge of a box
    to the upper one of another; y grows downwards, 1 a layer."""

    place: Mapping[str, tuple[float, int]]
    route: Mapping[tuple[str, str], list[tuple[float, float]]]

    @property
    def depth(self) -> int:
        return 1 + max((layer for _, layer in self.place.values()), default=0)

    @property
    def span(self) -> tuple[float, float]:
        """Left and right end of everything that is drawn."""
        sides = [x + side for x, _ in self.place.values() for side in (-WIDTH / 2, WIDTH / 2)]
        sides += [x for points in self.route.values() for x, _ in points]
        return (min(sides), max(sides)) if sides else (0.0, 1.0)


def layered(boxes: Sequence[str], lines: Iterable[tuple[str, str]]) -> Layout:
    """boxes: in an order in which every line runs forward. lines: pairs of boxes, each once."""
    lines = list(lines)
    depth = _depths(boxes, lines)
    layers: list[list[Place]] = [[] for _ in range(1 + max(depth.values(), default=0))]
    for box in boxes:
        layers[depth[box]].append(box)
    chains: dict[tuple[str, str], list[Place]] = {}
    for source, target in lines:
        passed: list[Place] = [(source, at) for at in range(depth[source] + 1, depth[target])]
        for at, place in enumerate(passed, depth[source] + 1):
            if place not in layers[at]:
                layers[at].append(place)
        chains[source, target] = [source, *passed, target]
    above, below = _neighbours(chains.values())
    _order(layers, above, below)
    x = _places(layers, above, below)
    stands = {box: (x[box], depth[box]) for box in boxes}
    route = {line: _route(chain, x, depth[line[0]]) for line, chain in chains.items()}
    return Layout(stands, route)


def _depths(boxes: Sequence[str], lines: Sequence[tuple[str, str]]) -> dict[str, int]:
    before: dict[str, list[str]] = {box: [] for box in boxes}
    after: dict[str, list[str]] = {box: [] for box in boxes}
    for source, target in lines:
        before[target].append(source)
        after[source].append(target)
    depth: dict[str, int] = {}
    for box in boxes:
        depth[box] = 1 + max((depth[source] for source in before[box]), default=-1)
    for box in boxes:
        if not before[box] and after[box]:  # a second input stands close to what reads it
            depth[box] = min(depth[target] for target in after[box]) - 1
    return depth


def _neighbours(chains: Iterable[list[Place]]) -> tuple[dict[Place, list[Place]], dict[Place, list[Place]]]:
    above: dict[Place, list[Place]] = {}
    below: dict[Place, list[Place]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            if lower not in below.setdefault(upper, []):
                below[upper].append(lower)
                above.setdefault(lower, []).append(upper)
    return above, below


def _order(layers: list[list[Place]], above: Mapping[Place, list[Place]], below: Mapping[Place, list[Place]]) -> None:
    """Sorts each layer by the mean place of what its members are joined to, downwards and upwards in turn."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        joined = above if down else below
        for at in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            rank = {place: i for i, place in enumerate(layers[at - 1 if down else at + 1])}
            _sort(layers[at], rank, joined)
        count = _crossings(layers, below)
        if count < fewest:
            best, fewest = [list(layer) for layer in layers], count
        if not fewest:
            break
    layers[:] = best


def _sort(layer: list[Place], rank: Mapping[Place, int], joined: Mapping[Place, list[Place]]) -> None:
    means: dict[Place, float] = {}
    for i, place in enumerate(layer):
        others = [rank[other] for other in joined.get(place, ())]
        means[place] = sum(others) / len(others) if others else float(i)
    layer.sort(key=means.__getitem__)


def _crossings(layers: Sequence[Sequence[Place]], below: Mapping[Place, list[Place]]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        rank = {place: i for i, place in enumerate(lower)}
        ends = [sorted(rank[other] for other in below.get(place, ())) for place in upper]
        flat: list[int] = []
        for targets in ends:
            count += sum(seen > target for target in targets for seen in flat)
            flat += targets
    return count


def _places(
    layers: Sequence[Sequence[Place]], above: Mapping[Place, list[Place]], below: Mapping[Place, list[Place]]
) -> dict[Place, float]:
    x: dict[Place, float] = {}
    for layer in layers:
        at = [0.0]
        for left, right in pairwise(layer):
            at.append(at[-1] + _apart(left, right))
        x |= {place: spot - at[-1] / 2 for place, spot in zip(layer, at, strict=False)}
    for step in range(STEPS):
        for layer in layers if step % 2 == 0 else reversed(layers):
            wanted, weights = [], []
            for place in layer:
                # From both sides: from one alone, each block would stand further aside than the one before.
                near = [*above.get(place, ()), *below.get(place, ())]
                # A line that passes is kept straight before anything else.
                passes = isinstance(place, tuple)
                heavy = [8.0 if passes and isinstance(other, tuple) else 1.0 for other in near]
                wanted.append(
                    sum(x[o] * h for o, h in zip(near, heavy, strict=True)) / sum(heavy) if near else x[place]
                )
                weights.append(sum(heavy) or 0.1)
            x |= dict(zip(layer, _apart_least(layer, wanted, weights), strict=True))
    x = {place: round(spot / GRAIN) * GRAIN for place, spot in x.items()}
    _straighten(layers, x)
    return x


def _straighten(layers: Sequence[Sequence[Place]], x: dict[Place, float]) -> None:
    """Makes the way past several layers one vertical line, where there is room for it in all of them."""
    ways: dict[str, list[tuple[Sequence[Place], int]]] = {}  # source -> layers and where in them
    for layer in layers:
        for i, place in enumerate(layer):
            if isinstance(place, tuple):
                ways.setdefault(place[0], []).append((layer, i))
    for way in ways.values():
        spots = [x[layer[i]] for layer, i in way]
        fitting = (s for s in (max(spots), min(spots)) if all(_fits(s, layer, i, x) for layer, i in way))
        if (spot := next(fitting, None)) is not None:
            x |= {layer[i]: spot for layer, i in way}


def _fits(spot: float, layer: Sequence[Place], i: int, x: Mapping[Place, float]) -> bool:
    left = i == 0 or x[layer[i - 1]] + _apart(layer[i - 1], layer[i]) <= spot + GRAIN
    return left and (i + 1 == len(layer) or spot <= x[layer[i + 1]] - _apart(layer[i], layer[i + 1]) + GRAIN)


def _apart(left: Place, right: Place) -> float:
    """The least distance of two neighbours, middle to middle."""
    passing = isinstance(left, tuple) + isinstance(right, tuple)
    return (WIDTH + ROOM, WIDTH / 2 + LANE, LANE)[passing]


def _apart_least(layer: Sequence[Place], wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The places nearest to the wanted ones, by least squares, at which nothing overlaps (pool adjacent violators)."""
    offset = [0.0]
    for left, right in pairwise(layer):
        offset.append(offset[-1] + _apart(left, right))
    pools: list[list[float]] = []  # mean, weight, members
    for want, weight, shift in zip(wanted, weights, offset, strict=True):
        pools.append([want - shift, weight, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, heavy, n = pools.pop()
            other, other_heavy, m = pools[-1]
            pools[-1] = [(other * other_heavy + mean * heavy) / (heavy + other_heavy), heavy + other_heavy, n + m]
    means = [mean for mean, _, members in pools for _ in range(int(members))]
    return [mean + shift for mean, shift in zip(means, offset, strict=True)]


def _route(chain: Sequence[Place], x: Mapping[Place, float], top: int) -> list[tuple[float, float]]:
    """Down out of a box, along the places it passes, into the next box; it moves sideways between layers alone."""
    points: list[tuple[float, float]] = []
    for at, (upper, lower) in enumerate(pairwise(chain), top):
        points += _curve((x[upper], at + HEIGHT / 2), (x[lower], at + 1 - HEIGHT / 2))
    return points


def _curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """From start to end, vertical at both: x follows 3 t^2 - 2 t^3."""
    if abs(start[0] - end[0]) < 1e-6:
        return [start, (start[0], (start[1] + end[1]) / 2), end]
    steps = [i / (SMOOTH - 1) for i in range(SMOOTH)]
    return [
        (start[0] + (end[0] - start[0]) * (3 * t * t - 2 * t**3), start[1] + (end[1] - start[1]) * t) for t in steps
    ]
