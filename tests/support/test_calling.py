"""A model is called without a trace; what it cannot take is said; digests tell data apart."""

from __future__ import annotations

import pytest
import torch
from helpers import Awkward, assert_same, snapshot

from trustml_helpers import models
from trustml_helpers._support.calling import call, digest, unchanged


def test_unchanged_restores_everything(awkward: Awkward):
    before = snapshot(awkward)
    with unchanged(awkward):
        assert not any(m.training for m in awkward.modules())
        awkward.train()
        awkward(torch.rand(3, 1, 8, 8)).sum().backward()
        awkward.requires_grad_(True)
    assert_same(before, snapshot(awkward))


def test_unchanged_restores_everything_after_an_exception(awkward: Awkward):
    before = snapshot(awkward)
    with pytest.raises(RuntimeError, match="on purpose"), unchanged(awkward):  # noqa: PT012
        awkward.train()
        awkward(torch.rand(3, 1, 8, 8))
        raise RuntimeError("on purpose")
    assert_same(before, snapshot(awkward))


@pytest.mark.parametrize(("change", "cure"), [
    (lambda x: x.to("meta"), r"on meta .*float32 on cpu; or convert it, model\.to\(x\.device"),
    (lambda x: x.double(), r"float64 on cpu .*torch\.float32 on cpu"),
    (lambda x: x[..., 1:], r"\(2, 1, 28, 27\).*shaped like those that it was trained on"),
])  # fmt: skip
def test_the_message_names_the_cure(change, cure):
    with pytest.raises(ValueError, match=cure):
        call(models.build("SmallCNN"), change(torch.zeros(2, 1, 28, 28)))


def test_errors_of_the_models_own_stay_what_they_are():
    class Own(RuntimeError):
        pass

    def broken(x):
        raise Own("mine")

    with pytest.raises(Own, match="mine"):
        call(broken, torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("rows", [0, 1, 4096, 4097])
def test_digests_tell_data_apart(dtype, rows):
    """By numbers, dtype, shape and order, and not by how they lie in memory."""
    x = torch.arange(2 * rows).view(2, rows).T.to(dtype)
    known = digest(x)
    assert digest(x.contiguous()) == known
    others = [x.view(torch.int32) if dtype == torch.float32 else x.double(), x.reshape(-1)]
    if rows:
        others.append(x.clone())
        others[-1][-1, -1] = 1 - others[-1][-1, -1].long()
    found = {known, *map(digest, others), digest(x, x)}
    assert len(found) == len(others) + 2
