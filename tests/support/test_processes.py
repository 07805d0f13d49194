"""The processes of a run; two of them are tried in training and certification."""

from __future__ import annotations

import pytest
import torch

from trustml_helpers._support import processes


def test_one_process_is_a_team_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = processes.team()
    assert (team.rank, team.size) == (0, 1)
    assert team.first(lambda: 7) == 7
    team.wait()
    tensors = [torch.ones(2), torch.zeros(1)]
    team.total(tensors)
    team.same(tensors)
    assert [t.tolist() for t in tensors] == [[1, 1], [0]]
    assert team.everyones(5) == [5]
    with pytest.raises(ZeroDivisionError):
        team.first(lambda: 1 / 0)
