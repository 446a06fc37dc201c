"""Wrappers: seen through where that is right, otherwise refused with the way out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import reprune.torch
from reprune.core.errors import UnsupportedModelError
from tests.helpers.torch_oracle import check_oracle, prepared, random_plans


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.LSTM] = nn.LSTM) -> None:
        super().__init__()
        self.lstm, self.out = kind(5, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0])


X = torch.randn(2, 6, 5)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fabric(model: nn.Module) -> nn.Module:
    lightning = pytest.importorskip("lightning.fabric", reason="Lightning is not installed")
    return lightning.Fabric(accelerator="cpu", devices=1).setup(model)


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, distributed, fabric, AveragedModel])
def test_every_verb_sees_through_wrappers(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    plain = reprune.torch.prune(model, [X], 0.5, method="magnitude")
    wrapped = wrap(model)
    result = reprune.torch.prune(wrapped, [X], 0.5, method="magnitude")
    assert result.plan == plain.plan
    reprune.Result(wrap(result.model), result.plan).save(tmp_path)
    small = {
        "apply": reprune.torch.apply(wrapped, plain.plan),
        "load": reprune.torch.load(wrapped, tmp_path),
        "distill": reprune.torch.distill(wrap(reprune.torch.apply(model, plain.plan)), wrapped, [X], 1),
    }
    masked = reprune.torch.mask(wrapped, plain.plan)
    assert type(result.model) is type(small["apply"]) is type(small["load"]) is type(masked) is Tagger
    with torch.no_grad():
        for name in ("apply", "load"):
            assert torch.equal(small[name](X), plain.model(X)), name
        torch.testing.assert_close(masked(X), plain.model(X))
    assert list(reprune.torch.inspect(wrapped, [X]).structure.layers) == list(plain.plan.kept)


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_a_wrapped_part_is_refused_with_the_way_out(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Tagger()
    model.lstm = wrap(model.lstm)
    with pytest.raises(UnsupportedModelError, match=r"lstm \(.*\) wraps a part of the model") as caught:
        reprune.torch.inspect(model, [X])
    name = "module" if wrap is nn.DataParallel else "_orig_mod"
    assert f"'s {name})" in str(caught.value)
    # Following the advice:
    model.lstm = getattr(model.lstm, name)
    reprune.torch.inspect(model, [X])


def test_masks_are_refused_with_the_way_out() -> None:
    model = Tagger()
    nn.utils.prune.l1_unstructured(model.lstm, "weight_hh_l0", 0.3)
    with pytest.raises(UnsupportedModelError, match=r"torch\.nn\.utils\.prune\.remove\(module, 'weight_hh_l0'\)"):
        reprune.torch.inspect(model, [X])
    nn.utils.prune.remove(model.lstm, "weight_hh_l0")
    reprune.torch.inspect(model, [X])


def test_torchscript_is_refused_with_the_way_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(Tagger().eval(), X)
    with pytest.raises(UnsupportedModelError, match="Prune the Python model"):
        reprune.torch.inspect(scripted, [X])


def test_quantised_is_refused_with_the_way_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantised = torch.ao.quantization.quantize_dynamic(Tagger().eval(), {nn.LSTM, nn.Linear})
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"no quantised engine here: {error}")
    with pytest.raises(UnsupportedModelError, match="Prune the float model first"):
        reprune.torch.inspect(quantised, [X])


def test_not_a_module() -> None:
    with pytest.raises(UnsupportedModelError, match=r"neither a torch\.nn\.Module nor"):
        reprune.torch.inspect("model", [X])


def test_nothing_recurrent_says_what_was_looked_for() -> None:
    with pytest.raises(UnsupportedModelError, match=r"looks for nn\.LSTM"):
        reprune.torch.inspect(nn.Linear(5, 3), [X])


def test_strict_raises_instead_of_pinning() -> None:
    model = nn.LSTM(5, 8)
    with pytest.raises(UnsupportedModelError, match=r"strict=True.*\n.*l0.*returns"):
        reprune.torch.inspect(model, [X], strict=True)


class OwnForward(nn.LSTM):
    def forward(self, x: torch.Tensor, hx: object = None) -> object:
        output, state = super().forward(x, hx)
        return torch.tanh(output), state


def test_subclass_with_own_forward_stays_plain() -> None:
    torch.manual_seed(0)
    model = prepared(Tagger(OwnForward).double(), train=False)
    structure = reprune.torch.inspect(model, [X.double()]).structure
    assert set(structure.count_coupled[0]) == set(structure.layers)
    for plan in random_plans(structure, 2):
        assert isinstance(reprune.torch.apply(model, plan).lstm, OwnForward)
        check_oracle(model, plan, torch.randn(3, 4, 5, dtype=torch.float64))


def test_uniform_keeps_plain_modules() -> None:
    model = Tagger()
    plan = reprune.torch.plan(model, [X], 0.4, method="magnitude", uniform=True)
    assert len(set(plan.counts().values())) == 1
    assert type(reprune.torch.apply(model, plan).lstm) is nn.LSTM


def test_everything_carries_over() -> None:
    model = Tagger().to(torch.bfloat16).train()
    model.out.eval()
    model.lstm.weight_hh_l1.requires_grad_(False)
    structure = reprune.torch.inspect(model, [X.to(torch.bfloat16)]).structure
    small = reprune.torch.apply(model, random_plans(structure, 1)[0])
    assert small.training
    assert not small.out.training
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["lstm.weight_hh_l1"]
    assert small(X.to(torch.bfloat16)).dtype is torch.bfloat16
    assert model.training


def test_model_with_a_graph_in_its_state_is_copied() -> None:
    """A hidden state kept from a training step has a graph, which `copy.deepcopy` refuses."""

    class Stateful(Tagger):
        hidden = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output, self.hidden = self.lstm(x)
            return self.out(output)

    model = Stateful()
    model(X).sum().backward()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    assert reprune.torch.prune(model, [X], 0.5, method="magnitude").model(X).shape == (2, 6, 3)


def test_empty_sequences_are_refused_by_torch_itself() -> None:
    class Packs(Tagger):
        def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, sizes, batch_first=True, enforce_sorted=False)
            return self.out(nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])

    model = Packs()
    small = reprune.torch.prune(model, [(X, torch.tensor([6, 3]))], 0.5, method="magnitude").model
    with pytest.raises(RuntimeError, match="greater than 0"):
        small(X, torch.tensor([6, 0]))
    long = torch.randn(2, 3000, 5)
    assert small(long, torch.tensor([3000, 1])).shape == (2, 3000, 3)
