"""What models take and return."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.helpers.torch_zoo.case import case, frames, lengths, tokens

Pair = namedtuple("Pair", "tags score")


@dataclass
class Output:
    tags: torch.Tensor
    extra: dict[str, torch.Tensor]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, 2, batch_first=True)
        self.out, self.score = nn.Linear(8, 3), nn.Linear(8, 1)


@case()
class ReturnsTuple(Tagger):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, list[torch.Tensor]]:
        h, _ = self.lstm(x)
        return self.out(h), None, [self.score(h[:, -1])]


@case()
class ReturnsDict(Tagger):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h, _ = self.lstm(x)
        return {"tags": self.out(h), "score": self.score(h).sum(1)}


@case()
class ReturnsDataclass(Tagger):
    def forward(self, x: torch.Tensor) -> Output:
        h, _ = self.lstm(x)
        return Output(self.out(h), {"score": self.score(h)})


@case()
class ReturnsNamedTuple(Tagger):
    def forward(self, x: torch.Tensor) -> Pair:
        h, _ = self.lstm(x)
        return Pair(self.out(h), self.score(h))


@case(batch=lambda b, t: (frames(b, t), lengths(b, t)))
class ReturnsPacked(Tagger):
    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> PackedSequence:
        output, _ = self.lstm(pack_padded_sequence(x, sizes, batch_first=True, enforce_sorted=False))
        return output._replace(data=self.out(output.data))


@case(batch=lambda b, t: {"x": frames(b, t), "words": tokens(b, t)})
class TakesDict(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)

    def forward(self, words: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embedding(words) + x)[0])


@case(batch=lambda b, t: ({"x": frames(b, t), "words": [tokens(b, t)]},))
class TakesNested(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)

    def forward(self, batch: dict[str, torch.Tensor | list[torch.Tensor]]) -> torch.Tensor:
        return self.out(self.lstm(self.embedding(batch["words"][0]) + batch["x"])[0])


@case(pins={"lstm:l1": "returns"})
class ReturnsUnits(Tagger):
    """An encoder whose output is its units: the last layer stays, the others need not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


@case(batch=frames, pins={"lstm:l1": "returns"})
class ReturnsFeatures(Tagger):
    """Class scores beside the features they were computed from."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, _ = self.lstm(x)
        return self.out(h), h


@case(
    batch=lambda b, t: (frames(b, t), torch.randn(2, b, 8), torch.randn(2, b, 8)),
    states=(("lstm:l0", "lstm:l1"), ("lstm:l0", "lstm:l1")),
    equal=(("lstm:l0", "lstm:l1"),),
)
class Streaming(Tagger):
    """A voice activity detector that runs chunk by chunk, h and c given and returned one by one."""

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        output, (h, c) = self.lstm(x, (h, c))
        return torch.sigmoid(self.score(torch.relu(output))), h, c


@case(pins={"lstm:l0": "returns", "lstm:l1": "returns"})
class ReturnsState(Tagger):
    """A final state that nobody hands back is an output like any other."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, (state, _) = self.lstm(x)
        return self.out(h), state
