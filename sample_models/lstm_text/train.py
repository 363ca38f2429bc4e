"""An LSTM that predicts the next character of the Python language reference. Run from the repository root."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import N_CALIBRATION, N_EVALUATION, Card, Samples, finish, options, train
from text import ALPHABET, CHARACTERS, TEXT_SOURCE, split_text, windows

LENGTH = 40

CARD = Card(
    name="lstm_text",
    title="LSTM on text",
    task="Which character follows these 40 characters of the Python language reference?",
    architecture="Embedding of characters (32 wide), one LSTM layer with 112 units, one linear layer on its last "
    "output.",
    source=TEXT_SOURCE,
    input="[N, 40] int64 tokens, one a character; 0 stands for a rare character",
    notes="Nearly all weights are in the two matrices of the LSTM, which are used again at each of the 40 steps, so an "
    "error in them comes back at every step. 8 bits are enough, 4 bits only per channel or with a good range.",
)


class NextCharacter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), 32)
        self.lstm = nn.LSTM(32, 112, batch_first=True)
        self.classifier = nn.Linear(112, len(ALPHABET))

    def every_step(self, tokens: Tensor) -> Tensor:
        """[N, T] -> [N, T, classes], as training needs it."""
        return self.classifier(self.lstm(self.embedding(tokens))[0])

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T] -> [N, classes]"""
        return self.classifier(self.lstm(self.embedding(tokens))[0][:, -1])


def main() -> None:
    opts = options(__file__)
    generator = torch.Generator().manual_seed(1)
    training, held_out = split_text(0.15, generator)

    n_calibration, n_evaluation = (64, 128) if opts.quick else (N_CALIBRATION, N_EVALUATION)
    sources = ((training, n_calibration), (held_out, n_evaluation))
    stored = torch.cat(
        [windows(text, torch.randperm(len(text) - LENGTH, generator=generator)[:n], LENGTH + 1) for text, n in sources]
    ).numpy()
    samples = Samples(
        x=stored[:, :-1],
        y=stored[:, -1],
        calibration_index=np.arange(n_calibration),
        evaluation_index=np.arange(n_calibration, n_calibration + n_evaluation),
        class_names=CHARACTERS,
    )

    def batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(training) - LENGTH, (96,), generator=generator)
        part = windows(training, starts, LENGTH + 1)
        return part[:, :-1], part[:, 1:]

    model = NextCharacter()
    train(
        model,
        batch,
        steps=4 if opts.quick else 1600,
        learning_rate=8e-3,
        weight_decay=0.02,
        forward=model.every_step,
        loss=lambda output, y: F.cross_entropy(output.flatten(0, 1), y.flatten()),
    )
    finish(model, samples, CARD, opts)


if __name__ == "__main__":
    main()
