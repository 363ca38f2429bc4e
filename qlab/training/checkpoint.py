"""A training as it stands at the end of an epoch, in one .safetensors file: to go on from, and to look at meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.errors import BadUpload, InvalidConfig, UnsupportedModel
from qlab.export.tensor_file import MAX_FILE, pack_file, unpack_file, write_whole
from qlab.training.history import PREFIX, History

FORMAT = "qlab-training-1"


@dataclass(frozen=True)
class Checkpoint:
    """key: what is trained, and how; a file of another is not taken. epoch: done; state: numbers beside the tensors."""

    key: str
    epoch: int
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    history: History

    def save(self, path: Path) -> None:
        """Whole or not at all, also when the process is killed meanwhile. Raises UnsupportedModel (too large)."""
        texts, arrays = self.history.parts()
        texts |= {"format": FORMAT, "key": self.key, "state": json.dumps({"epoch": self.epoch, **self.state})}
        data = pack_file(texts, {**self.tensors, **{name: torch.from_numpy(a) for name, a in arrays.items()}})
        if len(data) > MAX_FILE:
            raise UnsupportedModel(
                f"a checkpoint of this training takes {len(data) / 2**30:.1f} GB, and the lab reads up to "
                f"{MAX_FILE / 2**30:.0f} GB: train without one, or a smaller network."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    @classmethod
    def load(cls, path: Path, key: str) -> Checkpoint:
        """Raises InvalidConfig when it is of another training, BadUpload when it is damaged."""
        try:
            texts, tensors = unpack_file(path.read_bytes())
        except BadUpload as error:
            raise BadUpload(
                f"The checkpoint {path.name!r} is damaged. Remove it, and training starts anew.", detail=str(error)
            ) from error
        if texts.get("format") != FORMAT or texts.get("key") != key:
            raise InvalidConfig(
                f"{path.name!r} is not a checkpoint of this training: its model, data, config or settings are others. "
                "Give another path, or remove the file."
            )
        state = json.loads(texts["state"])
        arrays = {name: t.numpy() for name, t in tensors.items() if name.startswith(PREFIX)}
        own = {name: t for name, t in tensors.items() if not name.startswith(PREFIX)}
        return cls(key, state.pop("epoch"), state, own, History.from_parts(json.loads(texts["history"]), arrays))
