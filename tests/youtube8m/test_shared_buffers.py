"""Buffers that are filled again: never while somebody still looks at them."""

from __future__ import annotations

import gc

import pytest
import torch

from reprune.youtube8m.shared_buffers import SharedBuffers


@pytest.fixture
def buffers():
    return SharedBuffers(24)


def send(buffers: SharedBuffers, value: int, worker: int = 0, shape=(2, 3)):
    parcel, array = buffers.pack(worker, shape)
    array[...] = value
    return parcel


def test_a_buffer_is_filled_again_once_it_is_let_go(buffers):
    first = send(buffers, 1)
    assert first.buffer is not None
    opened = buffers.unpack(first)
    assert opened.shape == (2, 3)
    assert (opened == 1).all()
    second = send(buffers, 2)
    assert second.slot != first.slot
    del opened
    third = send(buffers, 3, shape=(4, 6))
    assert third.slot == first.slot
    assert third.buffer is None  # it is there already
    assert (buffers.unpack(third) == 3).all()
    assert (buffers.unpack(second) == 2).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[1:],
        lambda t: t.numpy(),
        lambda t: t.view(-1).numpy()[2:],
        lambda t: t.detach().T,
        lambda t: t.untyped_storage(),
    ],
    ids=["slice", "array", "slice of an array", "transposed", "storage"],
)
def test_any_view_keeps_the_buffer(buffers, view):
    parcel = send(buffers, 1)
    look = view(buffers.unpack(parcel))
    gc.collect()
    assert send(buffers, 2).slot != parcel.slot
    assert set(look.tolist() if isinstance(look, torch.UntypedStorage) else look.flatten().tolist()) == {1}
    del look
    assert send(buffers, 3).slot == parcel.slot


def test_workers_have_buffers_of_their_own(buffers):
    opened = [buffers.unpack(send(buffers, worker, worker)) for worker in range(3)]
    assert [int(tensor[0, 0]) for tensor in opened] == [0, 1, 2]


def test_more_than_there_are_slots_are_used_once(buffers):
    opened = [buffers.unpack(send(buffers, value)) for value in range(40)]
    assert [int(tensor[0, 0]) for tensor in opened] == list(range(40))
    assert send(buffers, 0).slot == -1
    del opened[3]
    assert send(buffers, 0).slot == 3


def test_what_a_given_up_pass_sent_is_taken_back(buffers):
    kept = buffers.unpack(send(buffers, 1))
    lost = [send(buffers, 2), send(buffers, 3)]
    buffers.begin(0)
    again = [send(buffers, 4), send(buffers, 5)]
    assert [parcel.slot for parcel in again] == [parcel.slot for parcel in lost]
    assert all(parcel.buffer is not None for parcel in again)  # for they never arrived
    assert [int(buffers.unpack(parcel)[0, 0]) for parcel in again] == [4, 5]
    assert (kept == 1).all()


def test_a_worker_that_replaces_another_brings_its_own_buffers(buffers):
    buffers.unpack(send(buffers, 1))
    buffers._own.clear()
    assert (buffers.unpack(send(buffers, 2)) == 2).all()
