import numpy as np
import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.lab.grid import Grid, coverage_order, short_names

SIX = (
    "min_max", "moving_average", ("percentile", {"percentile": 99.9}), ("percentile", {"percentile": 99.99}), "mse",
    "entropy",
)  # fmt: skip


def test_every_combination_once_in_the_order_of_the_choices() -> None:
    configs = Grid(weight_bits=(8, 4), activation_bits=(8, 6), activation_observers=SIX).configs()
    assert len(configs) == 24
    assert list(configs)[:7] == [
        "W8 A8 · min_max", "W8 A8 · moving_average", "W8 A8 · percentile 99.9", "W8 A8 · percentile 99.99",
        "W8 A8 · mse", "W8 A8 · entropy", "W8 A6 · min_max",
    ]  # fmt: skip
    config = configs["W4 A6 · percentile 99.9"].default
    assert config is not None
    assert config.weight == QuantSpec(4, "per_channel_symmetric")
    assert config.activation == QuantSpec(6, observer="percentile", observer_args={"percentile": 99.9})


def test_what_a_mode_has_no_use_for_makes_no_second_config() -> None:
    configs = Grid(
        weight_bits=(8, 4), activation_bits=(8, 6), activation_observers=("min_max", "mse"),
        modes=("static", "dynamic", "weight_only"),
    ).configs()  # fmt: skip
    modes = [m.default.mode for m in configs.values() if m.default]
    assert {mode: modes.count(mode) for mode in modes} == {"static": 8, "dynamic": 4, "weight_only": 2}
    assert len({str(m.to_dict()) for m in configs.values()}) == len(configs)
    assert "weight-only" in "".join(configs)


def test_invalid_combinations_are_named_not_run() -> None:
    grid = Grid(weight_observers=("min_max", "moving_average"))
    assert len(grid.configs()) == 1
    ((name, why),) = grid.left_out.items()
    assert "moving_average" in name
    assert "moving average over batches means nothing" in why


def test_a_grid_without_a_valid_config_says_why() -> None:
    with pytest.raises(InvalidConfig, match="means nothing"):
        Grid(weight_observers=("moving_average",)).configs()
    with pytest.raises(InvalidConfig, match="at least one entry"):
        Grid(weight_bits=()).configs()


def test_rules_stand_in_every_config() -> None:
    rules = QConfigMapping(by_name={"fc": None})
    assert all(m.by_name == {"fc": None} for m in Grid(weight_bits=(8, 4), rules=rules).configs().values())


def test_names_tell_configs_apart_by_what_differs() -> None:
    w, a = QuantSpec(8, "per_channel_symmetric"), QuantSpec(8)
    one = QConfig(weight=w, activation=a)
    assert short_names([one, one.replace(weight=w.replace(qscheme="per_tensor_symmetric"))]) == [
        "W8 A8 · per channel symmetric", "W8 A8 · per tensor symmetric",
    ]  # fmt: skip
    both = one.replace(weight=w.replace(observer="mse"), activation=a.replace(observer="entropy"))
    assert short_names([one, both]) == ["W8 A8 · W min_max · A min_max", "W8 A8 · W mse · A entropy"]
    signed = one.replace(activation=a.replace(signed=True))
    assert len(set(short_names([one, signed]))) == 2


def test_any_beginning_of_the_order_covers_the_space() -> None:
    mappings = [*Grid(weight_bits=(8, 4, 2), activation_bits=(8, 6, 4), activation_observers=SIX).configs().values()]
    order = coverage_order(mappings)
    assert sorted(order) == list(range(len(mappings)))
    assert order == coverage_order(mappings)
    first = [mappings[i].default for i in order[:9]]
    assert (first[0].weight.bits, first[0].activation.bits) == (8, 8)
    assert {c.activation.observer for c in first} >= {"min_max", "percentile", "mse", "entropy"}
    assert {c.weight.bits for c in first} >= {8, 2}
    assert {c.activation.bits for c in first} >= {8, 4}

    def gap(chosen: list[int]) -> float:
        """The farthest any config is from the nearest chosen one, in how many settings differ."""

        def settings(i: int) -> tuple[object, ...]:
            c = mappings[i].default
            return c.weight.bits, c.activation.bits, c.activation.observer, str(c.activation.observer_args)

        away = [[sum(a != b for a, b in zip(settings(i), settings(j), strict=True)) for j in chosen] for i in order]
        return float(np.mean(np.min(away, axis=1)))

    assert gap(order[:9]) < gap(list(range(9)))


def test_equal_and_single_configs_have_an_order() -> None:
    one = qlab.presets["x86"]
    assert coverage_order([]) == []
    assert coverage_order([one]) == [0]
    assert sorted(coverage_order([one, one, QConfigMapping()])) == [0, 1, 2]
