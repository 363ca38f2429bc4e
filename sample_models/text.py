"""Text for the sample models: the language reference of Python that comes with every Python."""

import re

import torch
from torch import Tensor

TEXT_SOURCE = (
    "The language reference of Python 3.11 as it comes with Python (pydoc_data.topics), "
    "Python Software Foundation License Version 2"
)
# Number 0 stands for every character that is not listed.
ALPHABET = "\0 abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()[]{}<>=+-*/%_|&@#^~\\\n"
CHARACTERS = ["other", "space", *ALPHABET[2:-1], "newline"]


def paragraphs() -> list[str]:
    """The paragraphs of all topics, white space collapsed, rules and grammar frames dropped.

    Topics quote each other at length. A paragraph is kept once, so that no text stands in both the training and the
    held-out part.
    """
    from pydoc_data.topics import topics

    kept: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            plain = " ".join(re.sub(r"[-=*+|]{3,}", " ", paragraph).split())
            if len(plain) >= 20:
                kept[plain] = None
    return list(kept)


def tokens_of(pieces: list[str]) -> Tensor:
    """[M] int64: the pieces in lower case, a newline between them, one number a character."""
    number = {character: i for i, character in enumerate(ALPHABET)}
    return torch.tensor([number.get(character, 0) for character in "\n".join(pieces).lower()])


def split_text(held_out: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens of the training and of the held-out paragraphs, drawn at random."""
    pieces = paragraphs()
    order = torch.randperm(len(pieces), generator=generator).tolist()
    n = round(len(pieces) * held_out)
    return tokens_of([pieces[i] for i in sorted(order[n:])]), tokens_of([pieces[i] for i in sorted(order[:n])])


def windows(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    """tokens [M], starts [N] -> [N, length]."""
    return tokens[starts[:, None] + torch.arange(length)]
