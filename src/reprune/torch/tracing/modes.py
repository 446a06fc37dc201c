"""Two modes watch the traced pass and hand every operation to its rule.

The function mode sees what Python calls: recurrent kernels, and sizes taken from attributes. The dispatch mode sees
every operation that follows, composite ones already taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from reprune.torch.tracing.attention import is_fused_attention, taken_apart
from reprune.torch.tracing.kernels import KERNELS
from reprune.torch.tracing.location import here, in_recurrent_module
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.rules import apply_rule, given_sizes, pin_summaries, record_sizes, sized, summaries_of
from reprune.torch.tracing.running.dispatch import DispatchMode
from reprune.torch.tracing.tracer import Tracer


class _FunctionMode(TorchFunctionMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._tracer.pauses:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if self._tracer.takes_piece(name, args):
            with self._tracer.untouched():
                return func(*args, **kwargs)
        if name in KERNELS and not isinstance(func, type(here)):
            with self._tracer.paused():
                out = func(*args, **kwargs)
                pin_summaries(self._tracer, summaries_of(self._tracer, tensors_in(args)))
                self._tracer.follow(tensors_in(args), tensors_in(out))
                KERNELS[name](self._tracer, args, out)
            return out
        with self._tracer.given_sizes(given_sizes(name, args, kwargs)):
            out = func(*args, **kwargs)
        if name in ("zeros", "new_zeros", "stack") and in_recurrent_module():
            self._tracer.note_own_zeros(name, args, out)
        if out is not NotImplemented:
            with self._tracer.paused():
                record_sizes(self._tracer, name, args, kwargs, out)
                out = sized(self._tracer, func, args, out)
        return out


class _DispatchMode(DispatchMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._tracer.pauses == 0 and _composite(func):
            # In inference mode nothing has taken it apart before.
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if self._tracer.pauses == 0 and is_fused_attention(func):
            with self:
                parts = taken_apart(func, args, kwargs)
            self._tracer.memory.set(out[0], self._tracer.memory.get(parts))
        elif self._tracer.pauses == 0:
            with torch._C.DisableTorchFunction():
                apply_rule(self._tracer, func, args, kwargs, out)
        return out


@cache
def _composite(func: Any) -> bool:
    """Whether an operation is made of others that have rules."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def run(tracer: Tracer, call: Callable[[], Any]) -> Any:
    """Run `call` under the tracer's modes."""
    with _DispatchMode(tracer), _FunctionMode(tracer):
        return call()
