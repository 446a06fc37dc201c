"""The paper's video classifier in PyTorch: bidirectional LSTM → LSTM → one sigmoid per class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from reprune.youtube8m.torch_loader import dequantize


class VideoClassifier(nn.Module):
    """Bidirectional LSTM → LSTM → linear map, which gives one logit per class.

    The last state of the second LSTM is classified. Sequences run packed: padding is never computed and never counts.

    Args:
        features: Numbers per frame.
        classes: Number of classes; a video may belong to several.
        hidden: Units of the second LSTM; each direction of the first one has half as many.
        normalize: Scale every frame to Euclidean length 1 first.

    Example:
        >>> model = VideoClassifier(features=1152, classes=3862)
        >>> logits = model(frames, lengths)             # doctest: +SKIP
        >>> probabilities = logits.sigmoid()            # doctest: +SKIP
    """

    def __init__(self, features: int, classes: int, hidden: int = 1024, *, normalize: bool = True) -> None:
        super().__init__()
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden={hidden} must be even: each direction of the first layer has half of it.")
        self.normalize = normalize
        self.bidirectional = nn.LSTM(features, hidden // 2, batch_first=True, bidirectional=True)
        self.recurrent = nn.LSTM(hidden, hidden, batch_first=True)
        self.output = nn.Linear(hidden, classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Weights as TensorFlow starts them, on which the paper was run: they train to a clearly better model.

        Input and output weights are Glorot's, recurrent ones orthogonal, biases 0, and 1 for the forget gates.
        """
        for name, parameter in self.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(parameter)
            elif "weight" in name:
                nn.init.xavier_uniform_(parameter)
            else:
                parameter.zero_()
            if "bias_ih" in name:
                units = len(parameter) // 4
                parameter[units : 2 * units] = 1.0

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B × classes).

        Args:
            frames: Quantised frames as stored (B × T × F), uint8.
            lengths: Number of valid frames of each video (B), at least 1, on any device.
        """
        inputs = dequantize(frames, lengths, normalize=self.normalize)
        # The packing needs the lengths on the host.
        packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
        both_ways, _ = self.bidirectional(packed)
        _, (last, _) = self.recurrent(both_ways)
        logits: Tensor = self.output(last[-1])
        return logits


class MeanPoolClassifier(nn.Module):
    """A baseline that cannot see order: the mean frame through a two-layer perceptron.

    Args:
        features: Numbers per frame.
        classes: Number of classes.
        hidden: Units of the hidden layer.
        normalize: Scale every frame to Euclidean length 1 first.
    """

    def __init__(self, features: int, classes: int, hidden: int = 1024, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B × classes) of padded videos; see `VideoClassifier.forward`."""
        inputs = dequantize(frames, lengths, normalize=self.normalize)
        mean = inputs.sum(1) / lengths.to(inputs.device)[:, None]
        logits: Tensor = self.output(torch.relu(self.hidden(mean)))
        return logits
