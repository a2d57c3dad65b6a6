"""The quantities of :mod:`tn_extensions.quantities` on tensors.

Each function checks its arguments, then runs the cached plan of its network. All of
them support convolutions in any number of dimensions, transposed or not, with groups
and every padding mode, and inputs with any strides (such as channels-last). Results
have the dtype of the input, or float32 if the input has half precision (float16,
bfloat16); they are also computed in this dtype.

Symbols: ``N`` is the number of samples, ``G`` the number of groups, ``CI`` and ``CO``
the numbers of input and output channels per group, ``K`` and ``O`` the total numbers of
kernel entries and output positions. ``U`` is the unfolded input, ``[N, G, CI * K, O]``:
its columns are patches in torch's order.
"""

from tn_extensions.functional.bias import (
    bias_ggn_diagonal,
    bias_ggn_gram,
    bias_per_sample_grad,
    bias_per_sample_grad_norm,
    bias_vjp,
)
from tn_extensions.functional.evaluate import plan
from tn_extensions.functional.factors import (
    gradient_factor_expand,
    gradient_factor_reduce,
    kfac_expand,
    kfac_reduce,
    patch_mean,
)
from tn_extensions.functional.gradients import (
    ggn_diagonal,
    ggn_gram,
    ggn_matvec,
    per_sample_grad,
    per_sample_grad_norm,
)
from tn_extensions.functional.linear import (
    conv,
    diagonal_backward,
    fold_output,
    input_jvp,
    input_vjp,
    unfold_input,
    unfold_weight,
    weight_jvp,
    weight_vjp,
)
from tn_extensions.functional.moments import kfac_moments, rotated_grad
from tn_extensions.functional.together import plan_together, together

__all__ = [
    "bias_ggn_diagonal",
    "bias_ggn_gram",
    "bias_per_sample_grad",
    "bias_per_sample_grad_norm",
    "bias_vjp",
    "conv",
    "diagonal_backward",
    "fold_output",
    "ggn_diagonal",
    "ggn_gram",
    "ggn_matvec",
    "gradient_factor_expand",
    "gradient_factor_reduce",
    "input_jvp",
    "input_vjp",
    "kfac_expand",
    "kfac_moments",
    "kfac_reduce",
    "patch_mean",
    "per_sample_grad",
    "per_sample_grad_norm",
    "plan",
    "plan_together",
    "rotated_grad",
    "together",
    "unfold_input",
    "unfold_weight",
    "weight_jvp",
    "weight_vjp",
]
