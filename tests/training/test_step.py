"""Batches are drawn in the epoch's order, each trajectory once, from any place on."""

import torch

from ups.latents.datasets import PreloadedCacheDataset
from ups.models.conditioning import conditioning
from ups.training.step import Feed


def numbered(num):
    """A data set whose trajectory i holds i, with ν = (i + 1) / 100."""
    z_NTKD = torch.arange(num).view(num, 1, 1, 1).expand(num, 3, 2, 4).half()
    return PreloadedCacheDataset(z_NTKD, condition((torch.arange(num) + 1) / 100), "cpu")


def condition(nu_N):
    return conditioning(["burgers1d"], "burgers1d", nu_N, 0.1)


def drawn(batch):
    return batch[0][:, 0, 0, 0].int().tolist()


def test_an_epoch_goes_through_the_order_from_any_place_with_each_parameter_beside():
    feed, order = Feed(numbered(5), "cpu"), torch.tensor([3, 0, 4, 1, 2])
    feed.begin_epoch(order, 0)
    batches = [feed.draw(2), feed.draw(2), feed.draw(1)]
    assert [drawn(batch) for batch in batches] == [[3, 0], [4, 1], [2]]
    conditions = torch.cat([batch[1] for batch in batches])
    assert torch.equal(conditions, condition((order + 1) / 100))
    feed.begin_epoch(order, 3)  # in its middle
    assert drawn(feed.draw(2)) == [1, 2]


def test_a_new_epoch_reuses_the_memory_that_a_graph_would_hold():
    feed = Feed(numbered(4), "cpu")
    places = feed._order_N.data_ptr(), feed._next.data_ptr()
    feed.begin_epoch(torch.tensor([1, 0, 3, 2]), 0)
    feed.draw(3)
    feed.begin_epoch(torch.tensor([2, 3, 0, 1]), 0)
    assert drawn(feed.draw(2)) == [2, 3]
    assert (feed._order_N.data_ptr(), feed._next.data_ptr()) == places
