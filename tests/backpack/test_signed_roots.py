"""Square roots with signs: copies, and sums at branching points."""

from __future__ import annotations

import torch

from tests.strategies import noise_tensor
from tn_extensions.backpack.signed_roots import SignedRoots


def hessian(roots: SignedRoots) -> torch.Tensor:
    """Compute the matrix that the roots are of, for each datum."""
    pairs = zip(roots["matrices"], roots["signs"], strict=True)
    return sum(
        (sign * torch.einsum("vni,vnj->nij", root, root) for root, sign in pairs),
        start=torch.zeros(()),
    )


def test_roots_of_one_origin_add_up_and_others_stay_apart() -> None:
    loss = noise_tensor((3, 2, 4))
    along = SignedRoots.after(None, {"matrices": [loss], "signs": [1.0]})
    positive, negative = noise_tensor((1, 2, 4)), 2 * noise_tensor((1, 2, 4))
    one = SignedRoots.after(
        along, {"matrices": [2 * loss, positive], "signs": [1.0, 1.0]}
    )
    other = SignedRoots.after(
        along, {"matrices": [3 * loss, negative], "signs": [1.0, -1.0]}
    )
    total = one + other
    assert total["signs"] == [1.0, 1.0, -1.0]
    expected = [
        SignedRoots([5 * loss], [1.0], [0]),
        SignedRoots([positive], [1.0], [0]),
        SignedRoots([negative], [-1.0], [0]),
    ]
    torch.testing.assert_close(hessian(total), sum(map(hessian, expected)))
    # neither of the sum's terms has changed
    assert len(one["matrices"]) == len(other["matrices"]) == 2


def test_copies_can_be_added_to() -> None:
    roots = SignedRoots([noise_tensor((1, 2, 3))], [1.0], [object()])
    copy = roots.copy()
    copy["matrices"].append(noise_tensor((2, 2, 3)))
    copy["signs"].append(-1.0)
    assert len(roots["matrices"]) == len(roots["signs"]) == 1
    assert copy.origins == roots.origins
