"""A transformer encoder that fills in a missing character of the Python language reference.

Run from the repository root.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import N_CALIBRATION, N_EVALUATION, Card, Samples, finish, options, train
from text import ALPHABET, CHARACTERS, TEXT_SOURCE, split_text, windows

LENGTH = 33
CENTRE = LENGTH // 2
MASK = len(ALPHABET)
WIDTH = 64

CARD = Card(
    name="transformer_text",
    title="Transformer on text",
    task="Which character is missing in the middle of these 33 characters of the Python language reference?",
    architecture="Embedding of characters and positions, three encoder blocks (64 wide, 4 heads, layer norm first, "
    "128 hidden units with GELU), one linear layer on the middle position.",
    source=TEXT_SOURCE,
    input="[N, 33] int64 tokens, one a character; 0 stands for a rare character, 69 for the missing one",
    notes="Both products inside attention multiply activations with activations: static quantization has to range "
    "them, weight-only leaves them alone. Layer norm stays in float. 4 bits per channel keep more than 4 bits per "
    "tensor.",
)


class Attention(nn.Module):
    """Self-attention with 4 heads; [N, T, E] -> [N, T, E]."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET) + 1, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.5)
        self.blocks = nn.Sequential(Block(WIDTH), Block(WIDTH), Block(WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, len(ALPHABET))

    def encoded(self, tokens: Tensor) -> Tensor:
        return self.blocks(self.embedding(tokens) + self.position)

    def every_position(self, tokens: Tensor) -> Tensor:
        """[N, T] -> [N, T, classes], as training needs it."""
        return self.classifier(self.norm(self.encoded(tokens)))

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T] -> [N, classes]"""
        return self.classifier(self.norm(self.encoded(tokens)[:, CENTRE]))


def main() -> None:
    opts = options(__file__)
    generator = torch.Generator().manual_seed(1)
    training, held_out = split_text(0.15, generator)

    n_calibration, n_evaluation = (64, 128) if opts.quick else (N_CALIBRATION, N_EVALUATION)
    sources = ((training, n_calibration), (held_out, n_evaluation))
    x = torch.cat(
        [windows(text, torch.randperm(len(text) - LENGTH, generator=generator)[:n], LENGTH) for text, n in sources]
    )
    y = x[:, CENTRE].clone()
    x[:, CENTRE] = MASK
    samples = Samples(
        x=x.numpy(),
        y=y.numpy(),
        calibration_index=np.arange(n_calibration),
        evaluation_index=np.arange(n_calibration, n_calibration + n_evaluation),
        class_names=CHARACTERS,
    )

    def batch() -> tuple[Tensor, Tensor]:
        part = windows(training, torch.randint(0, len(training) - LENGTH, (96,), generator=generator), LENGTH)
        missing = torch.rand(part.shape, generator=generator) < 0.12
        return torch.where(missing, MASK, part), torch.where(missing, part, -100)

    model = Encoder()
    train(
        model,
        batch,
        steps=4 if opts.quick else 2200,
        learning_rate=4e-3,
        weight_decay=0.02,
        forward=model.every_position,
        loss=lambda output, y: F.cross_entropy(output.flatten(0, 1), y.flatten()),
    )
    finish(model, samples, CARD, opts)


if __name__ == "__main__":
    main()
