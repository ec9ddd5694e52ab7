"""How fast is blockwise attention, next to torch's SDPA and `jax.nn.dot_product_attention`, on this machine?

    python benchmarks/attention.py --lengths 2048 4096 16384 [--save]

Causal, float32, [1, S, heads, width]. Useful GFLOP/s count the half of the square that is seen: two matmuls forward,
five more backward. Each round runs every rival once, in turn; figures are medians over rounds. torch is optional.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from saving import HARDWARE, save

from lwm.attention import AttentionConfig, AttentionMask, blockwise

Runs = dict[str, Callable[[], object]]
#: beyond this the dense rival's scores alone pass 8 GiB
LONGEST_DENSE = 16384


def blockwise_runs(arrays: list[np.ndarray], config: AttentionConfig) -> Runs:
    """Ours: forward, and forward with backward."""
    length = arrays[0].shape[1]
    ids = jnp.ones((1, length), jnp.int32)
    mask = AttentionMask.self_attention(ids, jnp.arange(length, dtype=jnp.int32)[None])
    return _jax_runs(arrays, lambda q, k, v: blockwise.attend(q, k, v, mask, config)[0])


def dense_runs(arrays: list[np.ndarray]) -> Runs:
    """JAX's own, whose scores are a T x T array on a CPU."""
    return _jax_runs(arrays, lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))


def _jax_runs(arrays: list[np.ndarray], attend: Callable) -> Runs:
    q, k, v, weights = map(jnp.asarray, arrays)
    forward = jax.jit(attend)
    gradients = jax.jit(jax.value_and_grad(lambda q, k, v: (attend(q, k, v) * weights).sum(), argnums=(0, 1, 2)))
    return {
        "forward": lambda: jax.block_until_ready(forward(q, k, v)),
        "both": lambda: jax.block_until_ready(gradients(q, k, v)),
    }


def torch_runs(arrays: list[np.ndarray]) -> Runs:
    """torch.nn.functional.scaled_dot_product_attention; nothing where torch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    q, k, v, weights = (torch.from_numpy(array).transpose(1, 2).contiguous() for array in arrays)
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward() -> object:
        with torch.no_grad():
            return attend(q, k, v, is_causal=True)

    def both() -> object:
        leaves = [array.detach().requires_grad_() for array in (q, k, v)]
        return torch.autograd.grad((attend(*leaves, is_causal=True) * weights).sum(), leaves)

    return {"forward": forward, "both": both}


def measure(rivals: dict[str, Runs], kind: str, rounds: int) -> dict[str, float]:
    """Median seconds of each rival, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for current in range(rounds + 1):
        for name, runs in rivals.items():
            start = time.perf_counter()
            runs[kind]()
            if current:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def rows(length: int, options: argparse.Namespace) -> list[str]:
    """The table's lines for one length."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, length, options.heads, options.width)).astype(np.float32) for _ in range(4)]
    config = AttentionConfig(query_block=options.query_block, key_block=options.key_block)
    rivals = {"blockwise": blockwise_runs(arrays, config), "torch SDPA": torch_runs(arrays)}
    if length <= LONGEST_DENSE:
        rivals["jax.nn"] = dense_runs(arrays)
    rivals = {name: runs for name, runs in rivals.items() if runs}
    matmul = 2 * length * length * options.heads * options.width / 2
    lines = []
    for kind, matmuls in (("forward", 2), ("both", 7)):
        times = measure(rivals, kind, options.rounds)
        for name, seconds in times.items():
            speed, ratio = matmuls * matmul / seconds / 1e9, seconds / times["blockwise"]
            lines.append(f"| {length} | {kind} | {name} | {seconds:.3f} | {speed:.0f} | {ratio:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--query-block", type=int, default=AttentionConfig.query_block)
    parser.add_argument("--key-block", type=int, default=AttentionConfig.key_block)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/attention_<hardware>_<date>.md")
    options = parser.parse_args()
    lines = [
        f"Causal attention, float32, [1, S, {options.heads}, {options.width}], tiles of {options.query_block} x "
        f"{options.key_block}, jax {jax.__version__}, {HARDWARE}, "
        f"medians of {options.rounds}.",
        "",
        "| S | what | who | seconds | useful GFLOP/s | seconds / ours |",
        "|---|---|---|---|---|---|",
    ]
    if not torch_runs([np.zeros((1, 1, 1, 1), np.float32)] * 4):
        lines[0] += " torch is not installed here, so it is not in the table."
    print("\n".join(lines))
    for length in options.lengths:
        lines += (found := rows(length, options))
        print("\n".join(found), flush=True)
    if options.save:
        save("attention", lines)


if __name__ == "__main__":
    main()
