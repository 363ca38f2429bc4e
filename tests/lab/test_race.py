import numpy as np
import pytest

from qlab.lab.race import ALPHA, Race

N = 1024


def answers(share: float, seed: int, right: np.ndarray) -> np.ndarray:
    """Predictions of which about this share is right."""
    wrong = np.random.default_rng(seed).random(right.shape) >= share
    return np.where(wrong, (right + 1) % 10, right)


def run(race: Race, predictions: np.ndarray, batch: int = 64) -> int:
    """How many samples were seen before it ended."""
    for seen in range(batch, len(predictions) + batch, batch):
        if not race.keep_going(predictions[:seen]):
            return seen
    return len(predictions)


@pytest.fixture
def right() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10, N)


def test_what_is_far_worse_is_dropped_at_the_first_look(right: np.ndarray) -> None:
    race = Race(answers(0.9, 1, right), right)
    assert run(race, answers(0.3, 2, right)) == N // 8
    assert race.dropped is not None
    assert (race.dropped.samples, race.dropped.of) == (128, N)
    assert race.dropped.worse > race.dropped.better
    assert "after 128 of 1,024 samples" in race.dropped.words
    assert race.dropped.to_dict()["p"] == race.dropped.p


def test_what_is_a_little_worse_is_dropped_later_or_not_at_all(right: np.ndarray) -> None:
    seen = [run(Race(answers(0.9, 1, right), right), answers(0.82, seed, right)) for seed in range(2, 12)]
    assert min(seen) >= N // 8
    assert max(seen) > N // 8


def test_a_better_one_and_an_equal_one_go_on(right: np.ndarray) -> None:
    race = Race(answers(0.8, 1, right), right)
    assert run(race, answers(0.95, 2, right)) == N
    assert run(Race(right, right), right) == N
    assert race.dropped is None


def test_equals_are_dropped_less_often_than_alpha(right: np.ndarray) -> None:
    dropped = 0
    for seed in range(200):
        race = Race(answers(0.9, 2 * seed, right), right)
        run(race, answers(0.9, 2 * seed + 1, right))
        dropped += race.dropped is not None
    assert dropped / 200 <= ALPHA


def test_nothing_is_decided_on_few_samples(right: np.ndarray) -> None:
    few = right[:100]  # an eighth of it are 13 samples, a half 50
    assert run(Race(few, few), (few + 1) % 10, batch=10) == 100


def test_a_sequence_counts_once() -> None:
    # 128 sequences of 50 positions, of which one sequence is all wrong: one sample worse, however many predictions
    right = np.zeros((1024, 50), dtype=int)
    own = right.copy()
    own[3] = 1
    race = Race(right, right)
    assert run(race, own) == 1024
    own[:60, 0] = 1
    assert run(Race(right, right), own) == 128
