"""Which parts of an output are tried in the place of arguments that were left out, in which order, and what counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reprune.torch.tracing.states.optional import Call, handed_back

X, Y, H, C = (torch.full((2, 3), float(k)) for k in range(4))


def forward(x: Any, h: Any = None, c: Any = None, *, mode: Any = None, size: int = 3, **more: Any) -> None: ...


def worth(tensor: Tensor) -> int:
    return 0 if float(tensor[0, 0]) < 2 else 8 if float(tensor[0, 0]) == 2 else 1


def told(value: Any) -> Any:
    """Arguments, tensors by their values."""
    if isinstance(value, Tensor):
        return "XYHC"[int(value[0, 0])]
    if isinstance(value, dict):
        return {name: told(item) for name, item in value.items()}
    return tuple(map(told, value)) if isinstance(value, tuple) else value


def tried(
    given: Call, output: Any, run: Callable[[Any], Any], method: Callable[..., Any] = forward
) -> tuple[Call | None, list[Any]]:
    trials: list[Any] = []

    def on_copy(trial: Call) -> Any:
        trials.append(told(trial))
        return run(trials[-1])

    return handed_back(method, given, output, worth, on_copy), trials


def refuse(trial: Any) -> Any:
    raise ValueError(trial)


def test_those_first_that_hand_over_most() -> None:
    found, trials = tried(((X,), {}), (Y, (H, C)), refuse)
    assert found is None
    pair = [{"h": ("H", "C")}, {"c": ("H", "C")}, {"mode": ("H", "C")}]
    two = [{"h": "H", "c": "C"}, {"h": "H", "mode": "C"}, {"c": "H", "mode": "C"}]
    single = [{name: tensor} for tensor in "HC" for name in ("h", "c", "mode")]
    assert trials == [(("X",), chosen) for chosen in (*pair, *two, *pair, *single)]
    assert tried(((X,), {}), (Y, {"a": X}), refuse) == (None, [])
    assert len(tried(((X,), {}), (H, H, H, H), refuse)[1]) == 24
    # A lone tensor, and neighbours that are not the last ones.
    assert [chosen for _, chosen in tried(((X, C), {}), H, refuse)[1]] == [{"c": "H"}, {"mode": "H"}]
    assert {"h": "H", "c": "H"} in [chosen for _, chosen in tried(((X,), {}), (H, H, Y), refuse)[1]]


def test_what_is_left_out_is_none_or_holds_nothing_else() -> None:
    def names(*args: Any, **kwargs: Any) -> set[str]:
        trials = tried((args, kwargs), H, refuse)[1]
        return {name for _, chosen in trials for name, value in chosen.items() if told(value) == "H"}

    assert names(X) == {"h", "c", "mode"}
    assert names(X, mode=1) == {"h", "c"}
    assert names(X, C, size=None) == {"c", "mode", "size"}
    assert names(X, (None, (None,))) == {"h", "c", "mode"}
    assert names(X, (None, C), {"a": None}) == {"c", "mode"}
    assert names(X, (), {}) == {"mode"}
    # What was given stays where it is: by name behind the first that was left out.
    _, trials = tried(((X, None, C), {"size": 4, "free": 5}), H, refuse)
    assert trials == [
        (("X",), {"h": "H", "c": "C", "size": 4, "free": 5}),
        (("X",), {"h": None, "c": "C", "mode": "H", "size": 4, "free": 5}),
    ]


def test_the_first_call_that_returns_other_values_in_the_same_shapes() -> None:
    def returns(**answers: Any) -> Callable[[Any], Any]:
        def run(trial: Any) -> Any:
            (name,) = trial[1]
            if name not in answers:
                raise ValueError(name)
            return answers[name]

        return run

    found, _ = tried(((X,), {}), (Y, H), returns(c=(X, H), mode=(X, C)))
    assert told(found) == (("X",), {"c": "H"})
    assert found is not None
    assert found[1]["c"] is not H
    found[1]["c"].zero_()
    assert float(H[0, 0]) == 2
    # Other shapes are no answer; the same values will do if there are no others.
    assert told(tried(((X,), {}), (Y, H), returns(h=(Y,), c=(Y, H), mode=(X, C)))[0]) == (("X",), {"mode": "H"})
    assert told(tried(((X,), {}), (Y, H), returns(h=(Y, H[:1]), c=(Y, H), mode=(Y, H)))[0]) == (("X",), {"c": "H"})
    assert told(tried(((X,), {}), (Y, H), returns(c=(Y, C)))[0]) == (("X",), {"c": "H"})
    assert tried(((X,), {}), (Y, H), returns(h=(Y,)))[0] is None
