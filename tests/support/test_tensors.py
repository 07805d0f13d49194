"""What the arguments of a call have in common."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trustml_helpers import attacks, robustness, training


@pytest.mark.parametrize("call", [
    lambda f, x, y: attacks.pgd(f, x, y, 0.1), robustness.accuracy,
    lambda f, x, y: robustness.diagnose(f, x, y, 0.1),
], ids=["pgd", "accuracy", "diagnose"])  # fmt: skip
def test_labels_on_another_device(call):
    with pytest.raises(ValueError, match=r"y is on meta and x on cpu: move one"):
        call(nn.Linear(4, 2), torch.full((2, 4), 0.5), torch.tensor([0, 1], device="meta"))


def test_labels_of_a_training_on_another_device():
    part = torch.full((2, 4), 0.5), torch.tensor([0, 1], device="meta")
    with pytest.raises(ValueError, match=r"train=.*on one device"):
        training.fit(nn.Linear(4, 2), part, epochs=1, progress=False)
