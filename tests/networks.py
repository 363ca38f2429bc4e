"""Small networks that several tests take apart."""

import torch
from torch import nn


class Twice(nn.Module):
    """A layer that is called twice: its weight is shared."""

    def __init__(self, width=8):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return self.fc(torch.relu(self.fc(x)))


class Body(nn.Module):
    """A layer under the name "body"."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)
