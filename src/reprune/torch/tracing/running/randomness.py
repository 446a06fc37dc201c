"""Random numbers of one's own: a pass neither uses up those of the process nor depends on who else draws from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from reprune.torch.tracing.running.dispatch import DispatchMode


@contextmanager
def own_randomness(seed: int = 0) -> Iterator[OwnRandomness]:
    """Within this context and thread, PyTorch's random numbers are drawn from generators that start from `seed`.

    Those of the process neither change nor matter: other threads may draw from them meanwhile. What a model draws
    elsewhere (`random`, NumPy) is not covered.
    """
    with OwnRandomness(seed) as drawn:
        yield drawn


class OwnRandomness(DispatchMode):
    """See `own_randomness`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def used(self) -> bool:
        """Whether something was drawn."""
        return bool(self._generators)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Draw from an own generator."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)  # In inference mode, composite operations come here whole.
        if parts is not NotImplemented:
            return parts
        if func is torch.ops.aten.native_dropout.default:
            return self._dropout(*args)
        seeded = _with_generator(func)
        if seeded is None:
            return func(*args, **kwargs)
        device = next((arg.device for arg in args if isinstance(arg, torch.Tensor)), kwargs.get("device"))
        return seeded(*args, **kwargs, generator=self._generator(torch.device(device or "cpu")))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def _dropout(self, data: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
        keep = torch.empty_like(data).bernoulli_(1 - p if train else 1.0, generator=self._generator(data.device))
        return (data * keep / (1 - p) if train and p < 1 else data * keep), keep.bool()


def _with_generator(func: Any) -> Callable[..., Any] | None:
    """The overload of an operation that takes a generator, and what it takes else."""
    wanted = [argument.name for argument in func._schema.arguments if argument.name != "generator"]
    for name in (func._overloadname, *func.overloadpacket.overloads()):
        overload = getattr(func.overloadpacket, name)
        names = [argument.name for argument in overload._schema.arguments]
        if "generator" in names and [name for name in names if name != "generator"] == wanted:
            return overload  # type: ignore[no-any-return]
    return None
