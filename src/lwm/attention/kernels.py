"""What a kernel is, and the table of those there are. Ring and all-to-all wrap any of them."""

from collections.abc import Callable
from typing import NamedTuple

from lwm.attention import blockwise


class Kernel(NamedTuple):
    """Attention of some queries over some keys, and its gradients, in a form whose parts add up."""

    #: attend(q, k, v, mask, config) -> out, log_sum_exp: differentiable, for a device that has every key it needs
    attend: Callable
    #: forward(q, k, v, mask, config) -> out, log_sum_exp: `out` [B, T, H, h] in float32 or in the dtype of `q`,
    #: `log_sum_exp` [B, T, H] in float32. A query that sees no key has zeros and `merge.NOTHING`.
    forward: Callable
    #: backward(q, k, v, mask, out, log_sum_exp, d_out, d_log_sum_exp, config) -> dq, dk, dv in float32. `out` and
    #: `log_sum_exp` are over all keys a query sees, `k` and `v` may be a part of them: the parts' gradients add up.
    backward: Callable


KERNELS = {"blockwise": Kernel(blockwise.attend, blockwise.forward, blockwise.backward)}
