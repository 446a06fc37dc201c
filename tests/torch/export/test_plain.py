"""Ragged modules run by plain ones compute the same, and tools that go by type find them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from reprune.torch import plain
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, RaggedRNN

RAGGED = {
    "lstm": lambda: RaggedLSTM(5, [[4, 7], [3, 6]], batch_first=True),
    "gru": lambda: RaggedGRU(5, [[4], [7]], batch_first=True),
    "rnn": lambda: RaggedRNN(5, [[4, 3]], nonlinearity="relu", bias=False, batch_first=True),
    "projected": lambda: RaggedLSTM(5, [[4, 7], [5, 6]], proj_sizes=[[3, 8], [2, 4]], batch_first=True),
}


def leaves(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_plain_module_computes_what_the_ragged_one_does(name: str) -> None:
    torch.manual_seed(0)
    ragged = RAGGED[name]().double()
    padded = plain(ragged)
    assert type(padded.rnn) in (nn.LSTM, nn.GRU, nn.RNN)
    assert not any("Ragged" in type(module).__name__ for module in padded.modules())
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    _, state = ragged(x)
    for given in (None, state):
        expected, got = ragged(x, given), padded(x, given)
        assert type(got[1]) is type(expected[1])
        for one, other in zip(leaves(got), leaves(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    packed = pack_padded_sequence(x, torch.tensor([2, 6, 4]), batch_first=True, enforce_sorted=False)
    expected, got = ragged(packed), padded(packed)
    torch.testing.assert_close(pad_packed_sequence(got[0]), pad_packed_sequence(expected[0]), rtol=0, atol=1e-12)
    for one, other in zip(leaves(got[1]), leaves(expected[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.output = RaggedLSTM(5, [[4, 7], [3, 6]]), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.output(y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantisation_and_torchscript_know_the_plain_model() -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    x = torch.randn(6, 3, 5)
    padded = plain(model)
    assert isinstance(model.rnn, RaggedLSTM)
    scripted = torch.jit.script(padded)
    torch.testing.assert_close(scripted(x), model(x), rtol=0, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(padded, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    assert type(quantised.rnn.rnn) is torch.ao.nn.quantized.dynamic.LSTM
    torch.testing.assert_close(quantised(x), model(x), rtol=0, atol=0.05)


def test_states_of_the_width_before_pruning_are_taken() -> None:
    ragged = RaggedGRU(5, [[4], [3]])
    ragged.accept_full_states([6, 6], [[0, 1, 3, 5], [1, 2, 4]])
    x, h = torch.randn(2, 3, 5), torch.randn(2, 3, 6)
    torch.testing.assert_close(plain(ragged)(x, h)[0], ragged(x, h)[0])
