"""States of the old width: which entries of them are left, and what is no such state."""

from __future__ import annotations

import torch

from reprune.torch.surgery.states import Selection


def test_states_of_the_old_width_are_cut_and_others_pass() -> None:
    stacked = Selection((), 2, 4, [[0, 2], [1, 3]], 0)
    assert stacked(torch.arange(8).view(2, 1, 4)).tolist() == [[[0, 2]], [[5, 7]]]
    for other in (torch.zeros(3, 1, 4), torch.zeros(2, 1, 3), torch.zeros(2, 4)):
        assert stacked(other) is other
    assert Selection((), 0, 4, [[1, 2]], None)(torch.arange(4)).tolist() == [1, 2]
