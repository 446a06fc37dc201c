"""`nn.LSTM`, `nn.GRU` and `nn.RNN` with a different number of units in every layer and direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.errors import UnsupportedModelError
from reprune.torch.ragged.base import Observer, RaggedBase
from reprune.torch.ragged.states import State, States, StateSelector

__all__ = ["Observer", "RaggedGRU", "RaggedLSTM", "RaggedRNN", "StateSelector", "fold", "unroll"]


@final
class RaggedLSTM(RaggedBase):
    """An `nn.LSTM` whose layers and directions may have different numbers of units.

    Called as `nn.LSTM` is: `output, (h_n, c_n) = lstm(input, (h_0, c_0))`, with dense input, batched or not, or a
    `PackedSequence`. Parameters have PyTorch's names, so the `state_dict` has the keys of the dense module.

    - `output`: (T, B, sum of the last layer's sizes), or as `batch_first` and the input's form say.
    - `h_n`, `c_n`: (layers * directions, B, size) if all sizes are equal. Unequal states cannot be stacked; they are a
      tuple of `layers * directions` tensors (B, size), in the same order: `h_n[-1]` reads the last one of either.
    - `h_0`, `c_0`: either of these forms, or nothing for zeros.

    Neighbouring layers of equal size run in one fused call, a layer with unequal directions in two. With all sizes
    equal this is the very call that `nn.LSTM` makes, dropout masks included.

    Args:
        input_size: Features of the input.
        hidden_sizes: Units per layer and direction: `[[128], [96]]`, or `[[64, 60], [32, 40]]` if bidirectional.
        bias: Whether there are biases.
        batch_first: Whether dense input and output are (B, T, features).
        dropout: Probability of zeroing an element between layers in training.
        proj_sizes: Projected components, nested as `hidden_sizes`; None for no projection.
        device: Where to create the parameters.
        dtype: Their type.

    Raises:
        ValueError: Sizes that are not positive, or not nested as a list of equally many directions per layer.

    Example:
        >>> lstm = RaggedLSTM(10, [[20, 16], [12, 9]])
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, [tuple(h.shape) for h in h_n]
        (torch.Size([5, 3, 21]), [(3, 20), (3, 16), (3, 12), (3, 9)])
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[Sequence[int]],
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        proj_sizes: Sequence[Sequence[int]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_sizes,
            proj_sizes,
            bias,
            batch_first,
            dropout,
            device,
            dtype,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[States, States] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[State, State]]:
        """Output and `(h_n, c_n)`; shapes as the class says, errors as `nn.LSTM` raises them."""
        output, (h, c) = self._forward(input, hx)
        return output, (h, c)


@final
class RaggedGRU(RaggedBase):
    """An `nn.GRU` whose layers and directions may have different numbers of units.

    Called as `nn.GRU` is: `output, h_n = gru(input, h_0)`. Arguments, shapes and errors as for `RaggedLSTM`.

    Example:
        >>> gru = RaggedGRU(10, [[20], [12]], batch_first=True)
        >>> output, h_n = gru(torch.randn(3, 5, 10))
        >>> output.shape, [tuple(h.shape) for h in h_n]
        (torch.Size([3, 5, 12]), [(3, 20), (3, 12)])
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[Sequence[int]],
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_sizes,
            None,
            bias,
            batch_first,
            dropout,
            device,
            dtype,
        )

    def forward(
        self, input: Tensor | PackedSequence, hx: States | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """Output and `h_n`; shapes as for `RaggedLSTM`, errors as `nn.GRU` raises them."""
        output, (h,) = self._forward(input, hx)
        return output, h


@final
class RaggedRNN(RaggedBase):
    """An `nn.RNN` whose layers and directions may have different numbers of units.

    Called as `nn.RNN` is: `output, h_n = rnn(input, h_0)`. Arguments, shapes and errors as for `RaggedLSTM`, and
    `nonlinearity`, which is `"tanh"` or `"relu"`.

    Example:
        >>> rnn = RaggedRNN(10, [[20, 12]], nonlinearity="relu")
        >>> rnn(torch.randn(5, 3, 10))[0].shape
        torch.Size([5, 3, 32])
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[Sequence[int]],
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_sizes,
            None,
            bias,
            batch_first,
            dropout,
            device,
            dtype,
        )
        self.nonlinearity = nonlinearity

    def forward(
        self, input: Tensor | PackedSequence, hx: States | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """Output and `h_n`; shapes as for `RaggedLSTM`, errors as `nn.RNN` raises them."""
        output, (h,) = self._forward(input, hx)
        return output, h


@overload
def unroll(module: nn.LSTM) -> RaggedLSTM: ...
@overload
def unroll(module: nn.GRU) -> RaggedGRU: ...
@overload
def unroll(module: nn.RNN) -> RaggedRNN: ...
def unroll(module: nn.RNNBase) -> RaggedLSTM | RaggedGRU | RaggedRNN:
    """The ragged form of a dense recurrent module, with the same Parameter objects: training one trains the other.

    Forward hooks, the training flag and `requires_grad` carry over.

    Args:
        module: An `nn.LSTM`, `nn.GRU` or `nn.RNN`. Its weights may be sliced already: sizes are read from them.

    Raises:
        UnsupportedModelError: The module computes something else: it overrides `forward`, its weights are
            parametrised, or they do not fit each other.

    Example:
        >>> ragged = unroll(nn.LSTM(10, 20, num_layers=2))
        >>> ragged.hidden_sizes
        ((20,), (20,))
    """
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    missing = [name for names in module._all_weights for name in names if name not in own]
    if missing:
        raise UnsupportedModelError(
            f"{', '.join(missing)} of {type(module).__name__} are not plain parameters. Remove the parametrisation "
            "first (torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm)"
        )
    options: dict[str, Any] = {
        "bias": module.bias,
        "batch_first": module.batch_first,
        "dropout": module.dropout,
        "device": "meta",
    }
    # Sizes are those of the weights: surgery slices them first and then asks for the module that fits.
    inputs = own["weight_ih_l0"].shape[1]
    ragged: RaggedLSTM | RaggedGRU | RaggedRNN
    if type(module).forward is nn.LSTM.forward:
        projections = _rows(module, own, "weight_hr", 1) if module.proj_size else None
        ragged = RaggedLSTM(inputs, _rows(module, own, "weight_ih", 4), proj_sizes=projections, **options)
    elif type(module).forward is nn.GRU.forward:
        ragged = RaggedGRU(inputs, _rows(module, own, "weight_ih", 3), **options)
    elif type(module).forward is nn.RNN.forward:
        nonlinearity = module.mode[4:].lower()
        ragged = RaggedRNN(inputs, _rows(module, own, "weight_ih", 1), nonlinearity=nonlinearity, **options)
    else:
        raise UnsupportedModelError(
            f"{type(module).__name__} has a forward of its own; only nn.LSTM, nn.GRU and nn.RNN can be unrolled"
        )
    for name in ragged._flat_weights_names:
        # With oneDNN, weights that do not fit each other give a plausible result rather than an error.
        if own[name].shape != getattr(ragged, name).shape:
            raise UnsupportedModelError(
                f"{name} has shape {tuple(own[name].shape)}; beside the other weights of this "
                f"{type(module).__name__} it must be {tuple(getattr(ragged, name).shape)}"
            )
        setattr(ragged, name, own[name])
    _carry_over(module, ragged)
    return ragged


def fold(module: RaggedLSTM | RaggedGRU | RaggedRNN) -> nn.LSTM | nn.GRU | nn.RNN | None:
    """The dense module that equals a ragged one, with the same Parameter objects; the inverse of `unroll`.

    Forward hooks, the training flag and `requires_grad` carry over; a state selector becomes a forward pre-hook.

    Args:
        module: A ragged module.

    Returns:
        An `nn.LSTM`, `nn.GRU` or `nn.RNN`, or None if the sizes differ or PyTorch has no module of these sizes (a
        projection to as many components as there are units, or more).

    Example:
        >>> fold(RaggedGRU(10, [[20], [20]]))
        GRU(10, 20, num_layers=2)
    """
    if len(module._stacks) != 1 or not module._stacks[0].fused:
        return None
    plain = module._plain(range(module.num_layers), range(module.num_directions))
    _carry_over(module, plain)
    if module.state_selector is not None:
        plain.register_forward_pre_hook(module.state_selector, with_kwargs=True)
    plain.flatten_parameters()
    return plain


def _rows(module: nn.RNNBase, own: dict[str, nn.Parameter], weight: str, gates: int) -> list[list[int]]:
    """Rows of one kind of weight in units, per layer and direction."""
    suffixes = ("", "_reverse")[: 2 if module.bidirectional else 1]
    return [
        [own[f"{weight}_l{layer}{suffix}"].shape[0] // gates for suffix in suffixes]
        for layer in range(module.num_layers)
    ]


def _carry_over(source: nn.Module, target: nn.Module) -> None:
    target.training = source.training
    for name in vars(source):
        if name.startswith("_forward") and "hooks" in name:
            getattr(target, name).update(getattr(source, name))
