"""How much memory one long sequence takes on one device: peak resident memory against its length.

    python benchmarks/long_context.py [--save]

Each line is a process of its own, so that its peak is its own: the nano model's forward pass to hidden states and
last logits (to 131,072 tokens), and one AdamW training step (to 32,768). Doubling the tokens should less than double
the peak, since the program itself is a constant.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import time

from saving import HARDWARE, save

FORWARD = (32_768, 65_536, 131_072)
TRAINING = (8192, 16_384, 32_768)


def measure(kind: str, num_tokens: int) -> None:
    """In the child: run once, print seconds and the peak in MiB."""
    import jax
    import jax.numpy as jnp

    from lwm.core import params as parameters
    from lwm.core.batch import Batch
    from lwm.core.mesh import MeshShape, make_mesh
    from lwm.model.config import SIZES, Compute
    from lwm.model.transformer import declare, head_weights, hidden_states, logits
    from lwm.train.optimizer import OptimizerConfig
    from lwm.train.step import init_state, make_train_step

    config, compute = dataclasses.replace(SIZES["nano"], max_context=num_tokens, rope_theta=5e7), Compute()
    tokens = jax.random.randint(jax.random.key(0), (1, num_tokens), 0, config.vocab.text_size)
    one, positions = jnp.ones_like(tokens), jnp.arange(num_tokens, dtype=jnp.int32)[None]
    mesh = make_mesh(MeshShape())
    with jax.set_mesh(mesh):
        params = parameters.init_sharded(declare(config), jax.random.key(0), jnp.float32, mesh)
        if kind == "forward":

            def forward(params: object, tokens: jax.Array) -> jax.Array:
                hidden = hidden_states(params, tokens, one, positions, config, compute)
                return logits(hidden[:, -1], head_weights(params, config, compute))

            run = jax.jit(forward).lower(params, tokens).compile()
            arguments = (params, tokens)
        else:
            state = init_state(config, OptimizerConfig(), mesh, params)
            batch = Batch(tokens, jnp.roll(tokens, -1, axis=1), jnp.ones((1, num_tokens)), one, positions)
            run = make_train_step(config, compute, OptimizerConfig(), mesh).lower(state, batch).compile()
            arguments = (state, batch)
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
    seconds = time.perf_counter() - began
    print(f"{seconds:.2f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def measured(kind: str, num_tokens: int) -> tuple[float, float]:
    """Seconds and peak MiB, from a process of its own."""
    command = [sys.executable, __file__, "--child", kind.split(maxsplit=1)[0], str(num_tokens)]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "TOKENS"), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write results/long_context_<hardware>_<date>.md")
    options = parser.parse_args()
    if options.child:
        measure(options.child[0], int(options.child[1]))
        return
    lines = [
        f"The nano model, one sequence on one device, fp32, {HARDWARE}.",
        "",
        "| what | tokens | seconds | tokens/s | peak MiB | peak to that of half the tokens |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for kind, lengths in (("forward", FORWARD), ("training step", TRAINING)):
        before = None
        for num_tokens in lengths:
            seconds, peak = measured(kind, num_tokens)
            ratio = f"{peak / before:.2f}" if before else ""
            speed = num_tokens / seconds
            lines.append(f"| {kind} | {num_tokens:,} | {seconds:.1f} | {speed:,.0f} | {peak:,.0f} | {ratio} |")
            print(lines[-1], flush=True)
            before = peak
    if options.save:
        save("long_context", lines)


if __name__ == "__main__":
    main()
