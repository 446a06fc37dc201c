"""Pruned models on the Hugging Face Hub: a mix-in that keeps a model's plan beside its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from reprune.core.errors import PlanError
from reprune.core.plan import Plan
from reprune.core.saving.files import replacing
from reprune.core.saving.saving import PLAN, WEIGHTS, read_pair, write_folder
from reprune.runtimes import need
from reprune.torch.weights import load_pruned, load_weights, save_weights
from reprune.verbs.result import Result

_hub: Any = need("huggingface_hub", "reprune.torch.hub")


class PrunedHubMixin(_hub.PyTorchModelHubMixin):  # type: ignore[misc]
    """`save_pretrained`, `push_to_hub` and `from_pretrained` that know plans. Mix it in before `nn.Module`.

    The constructor's arguments are kept in `config.json`, as Hugging Face's own mix-in does, and build the dense model;
    the plan beside it makes it small, and then the weights are read. A model that was not pruned has no plan and is
    kept as by Hugging Face's mix-in.

    Example:
        >>> class Tagger(PrunedHubMixin, nn.Module): ...                             # doctest: +SKIP
        >>> keep(reprune.prune(Tagger(512), batches)).push_to_hub("me/tagger")       # doctest: +SKIP
        >>> small = Tagger.from_pretrained("me/tagger")                              # doctest: +SKIP
    """

    reprune_plan: Plan | None = None

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.reprune_plan is None:
            with replacing(save_directory / WEIGHTS) as part:
                save_weights(self, None, part)
        else:
            plan = self.reprune_plan
            write_folder(save_directory, plan, {WEIGHTS: lambda path: save_weights(self, plan, path)})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
        map_location = options.pop("map_location", "cpu")
        options.pop("strict", None)
        download = {key: options.pop(key, None) for key in _DOWNLOAD}
        weights = _file(model_id, WEIGHTS, download)
        if weights is None:
            raise PlanError(f"{model_id} holds no {WEIGHTS}: it was not written by save_pretrained.")
        dense = cls(**options)
        plan_file = _file(model_id, PLAN, download)
        small: Any = dense
        if plan_file is None:
            load_weights(dense, weights)
        else:
            small = read_pair(plan_file, weights, partial(_pruned, dense))
        return small.to(map_location).eval()


def _pruned(dense: nn.Module, plan: Plan, weights: Path, sealed: bool) -> Any:
    small: Any = load_pruned(dense, plan, weights, sealed=sealed)
    small.reprune_plan = plan
    return small


_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _file(model_id: str, name: str, download: dict[str, Any]) -> Path | None:
    """A file of a local directory or of a repository on the Hub; None when there is none."""
    if Path(model_id).is_dir():
        path = Path(model_id) / name
        return path if path.is_file() else None
    try:
        return Path(_hub.hf_hub_download(repo_id=model_id, filename=name, **download))
    except _hub.errors.EntryNotFoundError:
        return None


def keep(result: Result[nn.Module]) -> nn.Module:
    """The model of a result with its plan attached, ready for `save_pretrained` and `push_to_hub`."""
    if not isinstance(result.model, PrunedHubMixin):
        raise PlanError(f"{type(result.model).__name__} does not mix in PrunedHubMixin.")
    result.model.reprune_plan = result.plan
    return result.model
