"""Recurrences and attention whose units are whole heads or groups of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.width_zoo.case import case
from tests.helpers.width_zoo.convolutions import RETURNED


class GroupNorm(nn.Module):
    """A root mean square over groups of features, whose number it takes from the length of what it is given."""

    def __init__(self, features: int, group: int) -> None:
        super().__init__()
        self.weight, self.group = nn.Parameter(torch.rand(features) + 0.5), group

    def forward(self, x: Tensor) -> Tensor:
        *rows, features = x.shape
        groups = features // self.group
        parts = x.view(*rows, groups, self.group)
        parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + 1e-5)
        return self.weight * parts.view(*rows, groups * self.group)


@case({"enter:heads": 3}, pins=RETURNED)
class GroupedScan(nn.Module):
    """A state space with heads: two share what they read and write, so a unit is two heads with their states."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.wide, self.groups, self.states = 6, 2, 3, 4
        self.inner, self.mixed = 6 * 2, 6 * 2 + 2 * 3 * 4
        self.enter, self.out = nn.Linear(5, self.inner + self.mixed + self.heads), nn.Linear(self.inner, 3)
        self.short = nn.Conv1d(self.mixed, self.mixed, 3, padding=2, groups=self.mixed)
        self.decay, self.around, self.shift = (nn.Parameter(torch.randn(self.heads)) for _ in range(3))
        self.norm = GroupNorm(self.inner, self.inner // self.groups)

    def forward(self, x: Tensor) -> Tensor:
        size, steps, _ = x.shape
        gate, mixed, step = self.enter(x).split([self.inner, self.mixed, self.heads], dim=-1)
        mixed = F.silu(self.short(mixed.transpose(1, 2))[..., :steps]).transpose(1, 2)
        some = self.groups * self.states
        u, write, read = torch.split(mixed, [self.inner, some, some], dim=-1)
        u = u.view(size, steps, self.heads, self.wide)
        write, read = (
            part.view(size, steps, self.groups, self.states).repeat_interleave(self.heads // self.groups, dim=2)
            for part in (write, read)
        )
        step = F.softplus(step + self.shift)
        decay, given = torch.exp(-step * self.decay.exp()), u * step[..., None]
        h, found = torch.zeros_like(given[:, 0, :, :, None] * write[:, 0, :, None]), []
        for t in range(steps):
            h = decay[:, t, :, None, None] * h + torch.einsum("bhp,bhn->bhpn", given[:, t], write[:, t])
            found.append(torch.einsum("bhpn,bhn->bhp", h, read[:, t]))
        y = torch.stack(found, 1) + self.around[:, None] * u
        return self.out(self.norm(y.reshape(size, steps, -1) * F.silu(gate)))


@case(
    {"query:heads": 2, "key:heads": 2, "value:heads": 2},
    pins=RETURNED,
    coupled=(("query:heads", "key:heads", "value:heads"),),
)
class FusedGroupedQueries(nn.Module):
    """The fused kernel shares a key among two queries; rotary pairs stay within a head."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = 4
        self.query, self.key, self.value = nn.Linear(5, 16), nn.Linear(5, 8), nn.Linear(5, 8)
        self.out = nn.Linear(16, 3)

    def turned(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1], dtype=x.dtype)
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).view(*x.shape[:2], -1, self.wide).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


@case({"enter:features": 3, "gate:features": 3}, pins=RETURNED, coupled=(("enter:features", "gate:features"),))
class BlockGates(nn.Module):
    """A gated linear recurrence whose gates read blocks of features, each by a matrix and a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.wide = 3, 4
        self.enter, self.gate, self.out = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(3, 4))
        self.decay = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        rows = u.reshape(-1, self.blocks, self.wide).permute(1, 0, 2)
        found = torch.baddbmm(self.bias[:, None, :], rows, self.weight).transpose(0, 1).reshape(u.shape)
        decay = torch.exp(-torch.sigmoid(found) * F.softplus(self.decay))
        h, states = torch.zeros_like(u[:, 0]), []
        for t in range(u.shape[1]):
            h = decay[:, t] * h + torch.sqrt(1 - decay[:, t] ** 2) * u[:, t]
            states.append(h)
        return self.out(torch.stack(states, 1) * F.gelu(self.gate(x)))


@case(
    {"query:heads": 3, "key:heads": 3, "value:heads": 3, "rate:heads": 3},
    pins=RETURNED,
    coupled=(("query:heads", "key:heads", "value:heads", "rate:heads"),),
)
class DeltaRule(nn.Module):
    """Linear attention that takes back what a key held before: a triangular solve for each head, over the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.features = 3, 3 * 2
        self.query, self.key, self.value = (nn.Linear(5, self.features) for _ in range(3))
        self.rate, self.out = nn.Linear(5, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        size, steps, _ = x.shape
        q, k, v = (
            part(x).view(size, steps, self.heads, self.features // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        k, rate = F.normalize(k, dim=-1), torch.sigmoid(self.rate(x)).transpose(1, 2)[..., None]
        overlap = torch.tril(rate * k @ k.transpose(-1, -2), -1) + torch.eye(steps, dtype=x.dtype)
        new = torch.linalg.solve_triangular(overlap, rate * v, upper=False)
        y = torch.tril(q @ k.transpose(-1, -2)) @ new
        return self.out(y.transpose(1, 2).reshape(size, steps, -1))


@case(
    {"query:heads": 2, "key:heads": 2, "value:heads": 2, "forget:heads": 2},
    pins=RETURNED,
    coupled=(("query:heads", "key:heads", "value:heads", "forget:heads"),),
)
class MatrixMemory(nn.Module):
    """Each head keeps a matrix of keys times values, and forgets by a gate of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.features = 2, 2 * 3
        self.query, self.key, self.value = (nn.Linear(5, self.features) for _ in range(3))
        self.forget, self.out = nn.Linear(5, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        size, steps, _ = x.shape
        q, k, v = (part(x).view(size, steps, self.heads, -1) for part in (self.query, self.key, self.value))
        kept = F.logsigmoid(self.forget(x)).exp()
        memory, found = torch.zeros_like(k[:, 0, :, :, None] @ v[:, 0, :, None, :]), []
        for t in range(steps):
            memory = kept[:, t, :, None, None] * memory + k[:, t, :, :, None] @ v[:, t, :, None, :]
            found.append((q[:, t, :, None, :] @ memory).squeeze(2))
        if found[0].shape != (expected := (size, self.heads, self.features // self.heads)):
            raise ValueError(f"{found[0].shape} is not {expected}")
        return self.out(torch.stack(found, 1).reshape(size, steps, -1))
