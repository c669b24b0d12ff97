"""The control that factorizes and reads no data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cola_lib.compress import JointLowRank, compress, joint_lowrank, method_spec, restored
from cola_lib.errors import SpecError, UnknownNameError
from tests.tiny_models import MODEL_TYPES, tiny_language_model


def weights(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


@pytest.mark.parametrize("keep", [0.3, 0.8, 1.0])
def test_it_is_the_best_approximation_of_the_stack_at_its_rank(keep):
    W = weights((12, 8), (6, 8))
    spec = method_spec("joint_lowrank", keep=keep)
    low = joint_lowrank(W, spec)
    rank = spec.rank(18, 8)
    assert [tuple(w.shape) for w in low] == [(12, 8), (6, 8)]
    stacked = torch.cat(low).numpy()
    assert np.linalg.matrix_rank(stacked, tol=1e-4) == rank
    left = np.linalg.svd(torch.cat(W).double().numpy())[1][rank:]
    np.testing.assert_allclose(np.square(torch.cat(W).numpy() - stacked).sum(), np.square(left).sum(), rtol=1e-4)


def test_two_factors_hold_the_share_of_parameters_that_is_kept():
    for keep in (0.1, 0.5, 0.8, 1.0):
        rank = JointLowRank(keep=keep).rank(3072, 576)
        assert rank * (3072 + 576) <= keep * 3072 * 576 < (rank + 1) * (3072 + 576)
    assert JointLowRank(keep=0.001).rank(8, 8) == 1


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_queries_with_keys_and_gates_with_ups_become_low_rank_and_nothing_else_changes(model_type):
    lm = tiny_language_model(model_type)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    spec = method_spec("joint_lowrank", keep=0.5)
    joined = [layer for group in lm.architecture.groups for layer in group.joined]
    with restored(lm):
        report = compress(lm, spec, progress=False)
        after = {name: value.clone() for name, value in lm.model.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {f"{lm.block_name(i)}.{layer}.weight" for i in range(3) for layer in joined}
    assert changed == expected and joined
    assert report.spec.label == "joint_lowrank 50%" and not report.spec.calibrated
    for group in lm.architecture.groups:
        if group.joined:
            stack = torch.cat([after[f"{lm.block_name(0)}.{layer}.weight"] for layer in group.joined])
            assert torch.linalg.matrix_rank(stack.double(), tol=1e-4) == spec.rank(*stack.shape)


def test_a_share_is_a_share():
    for keep in (0.0, 1.2, -1):
        with pytest.raises(SpecError, match="keep is a share above 0"):
            JointLowRank(keep=keep)
    with pytest.raises(UnknownNameError, match="unknown option of joint_lowrank 'bits'"):
        method_spec("joint_lowrank", bits=3)
