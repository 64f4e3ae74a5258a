"""Training on two processes is that of one process on the same data."""

from __future__ import annotations

import shutil

import pytest
import ranks
import torch
import torch.distributed.checkpoint as dcp
from processes import run_on_two

from pyro_bnn.models import _rng

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two processes have run here, once for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.interrupted(folder / "one.pt", 5)
    run_on_two("ranks.py", folder, *LAUNCHER)
    return folder


def load(folder):
    return [torch.load(folder / f"found{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def found(folder):
    return load(folder)


@pytest.fixture(scope="module")
def again(folder, tmp_path_factory):
    """What the same command has found, after a rank had died."""
    second = tmp_path_factory.mktemp("again")
    shutil.copy(folder / "died.pt", second)
    run_on_two("ranks.py", second, *LAUNCHER)
    return load(second)


def check(first, second, rtol=0.0, atol=0.0):
    torch.testing.assert_close(first, second, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("key", ["same draws", "particles"])
def test_two_are_one_given_the_same_draws(found, key):
    expected = {"same draws": ranks.same_draws, "particles": ranks.particles}[key]()
    for name, (state, history) in expected.items():
        for of_rank in found:
            check(of_rank[key][name][0], state, atol=1e-9)
            check(of_rank[key][name][1], history, rtol=1e-9)


def test_wrapped_modules_have_gradients_of_the_joint_batch(found):
    for name, expected in ranks.recipes().items():
        assert all(x.any() for x in expected.values()), name
        for of_rank in found:
            check(of_rank["recipes"][name], expected, rtol=1e-9, atol=1e-12)


def test_sharded_steps_are_those_of_whole_parameters(found, folder, tmp_path):
    for i, (name, expected) in enumerate(ranks.sharded(tmp_path).items()):
        for of_rank in found:
            check(of_rank["sharded"][name], expected, rtol=1e-9, atol=1e-12)
        module = ranks.to_be_sharded(name)
        state = {"module": module.state_dict()}
        with pytest.warns(UserWarning, match="load in a single process"):
            dcp.load(state, checkpoint_id=folder / f"dcp{i}")
        module.load_state_dict(state["module"])
        check(dict(module.named_parameters()), expected, rtol=1e-9, atol=1e-12)


def test_ranks_draw_differently_and_end_with_the_same_parameters(found):
    first, second = (x["checkpoints"] for x in found)
    for name in ("whole", "of one"):
        check(first[name], second[name])
    assert not torch.equal(first["random numbers"], second["random numbers"])


def test_runs_are_reproducible_and_resume_bit_for_bit(found):
    for of_rank in found:
        resumed, steps = of_rank["checkpoints"]["resumed"]
        check(resumed, of_rank["checkpoints"]["whole"])
        assert steps == [5, 6]
        assert of_rank["checkpoints"]["interrupted"]


def test_checkpoints_of_one_process_resume_in_two_and_back(found, folder, tmp_path):
    _, begun_by_one = found[0]["checkpoints"]["of one"]
    _, begun_by_two = ranks.run(shutil.copy(folder / "died.pt", tmp_path))
    for history in (begun_by_one, begun_by_two):
        assert history["step"] == list(range(1, 7))
    whole = found[0]["checkpoints"]["whole"][1]
    check({n: x[:4] for n, x in begun_by_two.items()}, {n: x[:4] for n, x in whole.items()})
    finished = ranks.run(folder / "whole.pt")
    check(finished, found[0]["checkpoints"]["whole"])


def test_ranks_stop_together(found):
    first, second = (x["stopped"] for x in found)
    check(first, second)
    assert len(first["patience"]["step"]) < 60
    assert first["callback"]["step"][-1] == 2


def test_ranks_part_also_after_checkpoints_of_ones_own(found):
    for first, second in zip(*(x["own loop"] for x in found), strict=True):
        assert not torch.equal(first, second)


def test_svi_warns_that_ranks_part(found):
    first, second = (x["pyro and torch"] for x in found)
    check(first["start"], second["start"])
    check(first["DDP"], second["DDP"])
    for name in (n for n, p in first["start"].items() if p.is_floating_point()):
        assert not torch.equal(first["SVI"][name], second["SVI"][name])
        assert not torch.equal(first["DDP"][name], first["start"][name])
    for rank, of_rank in enumerate((first, second)):
        (said,) = of_rank["said"]
        assert f"`SVI` on rank {rank} of 2: `pyro.optim` averages no gradients" in said


def test_a_distributed_sampler_is_left_to_divide(found):
    first, second = (x["sampler"] for x in found)
    assert len(first) == len(second)
    together = {tuple(row) for row in torch.cat([first, second]).tolist()}
    assert together >= {tuple(row) for row in ranks.data()[0].tolist()}
    shared = {tuple(row) for row in first[-7:].tolist()}
    assert len(shared & {tuple(row) for row in second[-7:].tolist()}) == 1  # of 13 rows


def test_errors_are_those_of_all_ranks(found):
    for rank, of_rank in enumerate(found):
        errors = {name: message for name, (message, _) in of_rank["refused"].items()}
        assert all(same for _, same in of_rank["refused"].values())
        assert f"on rank {1 - rank}" in errors["lr"]
        assert "exists for 1 of 2 processes" in errors["seen by one"]
        assert "DistributedSampler repeats data" in errors["sampler"]
        assert "one datum at a time" in errors["single data"]
        assert "divided by `fully_shard`" in errors["sharded"] or not ranks.CAN_SHARD
        assert "gradients of" in errors["gradient"]
        assert "no parameter was changed" in errors["gradient"]


def test_a_rank_that_dies_ends_the_other(found, again):
    assert "rank 0 has lost another one, which ended" in found[0]["death"]
    assert "rank 1 has lost another one, which ended" in again[1]["death"]


def test_two_ranks_go_on_after_one_has_died(found, again):
    for first, second in zip(found, again, strict=True):
        resumed, steps = second["resumed"]
        check(resumed, first["checkpoints"]["whole"])
        assert steps == [5, 6]


def test_arguments():
    with pytest.raises(ValueError, match=r"`ranks` \(='rows'\) .* 'data', 'particles' or None"):
        ranks.run(None, ranks="rows")


def test_each_of_many_ranks_has_random_numbers_of_its_own():
    drawn = []
    for rank in range(4):
        torch.manual_seed(0)
        _rng.part(rank)
        drawn.append(torch.rand(3))
    assert len(torch.stack(drawn).unique(dim=0)) == 4
