"""For export: what converters raise, as an error that names the format, the operation and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from reprune.core.exporting import ExportError
from reprune.torch.export.example import title
from reprune.torch.export.recurrent import recurrent_modules

_OPERATION = re.compile(r"\b((?:aten|prims|torchvision|quantized)(?:\.|::)[\w.]+)")


@contextmanager
def converting(model: nn.Module, path: Path) -> Iterator[None]:
    """Within this context, whatever a converter raises becomes an `ExportError`."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # The converters' errors share no base class.
        chain: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in chain:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        text = "\n".join(str(one) for one in chain)
        operations = list(dict.fromkeys(match.rstrip(".") for match in _OPERATION.findall(text)))
        what = f"it has no counterpart of {operations[0]}" if operations else _last_line(chain[-1])
        raise ExportError(f"{path.suffix} cannot hold {title(model)}: {what}.{_way_out(model)}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _way_out(model: nn.Module) -> str:
    paths = [path.removeprefix("model.") for path, _ in recurrent_modules(model)]
    paths += [
        path.removeprefix("model.") for path, module in model.named_modules() if isinstance(module, nn.RNNCellBase)
    ]
    parts = sorted({path.rpartition(".")[0] or path for path in paths if path and path != "model"})
    if not parts:
        return ""
    return (
        f" Export the recurrent part alone, submodule={parts[0]!r}"
        f"{' (or ' + ', '.join(map(repr, parts[1:4])) + ')' if parts[1:] else ''}, and run the rest outside the file."
    )
