"""What is saved is what is loaded; nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import reprune
from reprune.core.errors import PlanError
from reprune.verbs.result import Result


class Tied(nn.Module):
    """Layers of different sizes after pruning, tied embeddings, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.down = nn.Linear(16, 6)
        self.decoder = nn.Linear(6, 11, bias=False)  # By its name before the embedding that it is tied to.
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        sequence, _ = self.lstm(self.embedding(ids))
        return self.decoder(self.down(self.norm(sequence.transpose(1, 2)).transpose(1, 2)))


IDS = torch.arange(14).reshape(2, 7) % 11


def pruned(dtype: torch.dtype = torch.float32) -> Result:
    torch.manual_seed(0)
    model = Tied()
    model(IDS)  # Moves the running mean away from where it starts.
    result = reprune.prune(model.eval(), [IDS], ratio=0.5, method="magnitude")
    return Result(result.model.to(dtype), result.plan)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pruned().save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_round_trip_keeps_values_precision_and_ties(tmp_path: Path, dtype: torch.dtype) -> None:
    result = pruned(dtype)
    result.save(tmp_path)
    loaded = reprune.load(Tied(), tmp_path).eval()
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.decoder.weight is loaded.embedding.weight
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(loaded(IDS), result.model.eval()(IDS), rtol=0, atol=0)
    assert not list(tmp_path.glob("*.partial"))


def _rewrite(folder: Path, change) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


DAMAGE = {
    "missing file": (lambda f: (f / "model.safetensors").unlink(), "does not exist"),
    "missing plan": (lambda f: (f / "plan.json").unlink(), "does not exist"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "cannot be read",
    ),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot be read"),
    "huge header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
    "missing tensor": (lambda f: _rewrite(f, lambda t: t.pop("down.bias")), "missing .*down.bias"),
    "extra tensor": (lambda f: _rewrite(f, lambda t: t.update(more=torch.zeros(2))), "not known .*more"),
    "wrong shape": (lambda f: _rewrite(f, lambda t: t.update({"down.bias": torch.zeros(7)})), "do not belong together"),
    "wrong type": (
        lambda f: _rewrite(f, lambda t: t.update({"down.bias": torch.zeros(6, dtype=torch.int64)})),
        "holds torch.int64",
    ),
    "truncated plan": (lambda f: (f / "plan.json").write_bytes((f / "plan.json").read_bytes()[:200]), "valid plan"),
    "binary plan": (lambda f: (f / "plan.json").write_bytes(b"\xff\x00"), "valid plan"),
    "deep plan": (lambda f: (f / "plan.json").write_text("[" * 100_000), "valid plan"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused(saved: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(saved)
    dense = Tied()
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    with pytest.raises(PlanError, match=message):
        reprune.load(dense, saved)
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


def test_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(PlanError, match="another model"):
        reprune.load(nn.LSTM(3, 4), saved)


def test_a_plan_that_names_units_out_of_range_is_refused(saved: Path) -> None:
    plan = json.loads((saved / "plan.json").read_text())
    plan["kept"]["lstm:l0"][-1] = 10**9
    (saved / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="lstm:l0"):
        reprune.load(Tied(), saved)


def test_hub_round_trip_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from reprune.torch.hub import PrunedHubMixin, keep

    class Tagger(PrunedHubMixin, nn.Module):
        def __init__(self, hidden: int = 8) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, hidden, batch_first=True, bidirectional=True)
            self.decoder = nn.Linear(2 * hidden, 3)

        def forward(self, frames: Tensor) -> Tensor:
            return self.decoder(self.lstm(frames)[0])

    frames = torch.randn(2, 5, 4)
    result = reprune.prune(Tagger(hidden=10).eval(), [frames], ratio=0.5, method="magnitude")
    keep(result).save_pretrained(tmp_path)
    loaded = Tagger.from_pretrained(str(tmp_path))
    torch.testing.assert_close(loaded(frames), result.model(frames))
    assert loaded.reprune_plan.kept == result.plan.kept
    # And once more from what was loaded.
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(Tagger.from_pretrained(str(tmp_path / "again"))(frames), loaded(frames))
