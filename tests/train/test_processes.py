"""Two processes with four devices each, on one machine: the same run as one process with eight."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lwm.core.mesh import MeshShape
from lwm.model.lora import LoraConfig
from lwm.train.loop import train
from lwm.train.run import Run

SCRIPT = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[4]), shutdown_timeout_seconds=20)
from lwm.core.mesh import MeshShape
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.model.config import ModelConfig
from lwm.model.lora import LoraConfig
from lwm.train.loop import train
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
world, out = Path(sys.argv[1]), Path(sys.argv[2])
data = RecordData(str(world / "records.jsonl"))
model = ModelConfig(Vocab(264, bos_id=256, eos_id=257), 32, 64, 2, 8, 8, 8, max_context=64)
tokenizer = str(world / "tokenizer.json")
run = Run(name="test", model=model, data=data, tokenizer=tokenizer, steps=3, batch_size=8, seq_len=64,
          optimizer=OptimizerConfig(1e-2, warmup_steps=2), mesh=MeshShape.parse(sys.argv[5]), log_every=1,
          held_out=data, held_out_batches=1, eval_every=3, checkpoint_every=3, out=out,
          lora=LoraConfig(int(sys.argv[6])), init_from=sys.argv[7] or None)
assert train(run).step == 3
"""


def losses(run: Run) -> list[float]:
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("held_out_loss")) for line in lines]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "rank"), [("1,1,1,8", 0), ("1,2,2,2", 0), ("1,2,2,2", 4)])
def test_two_processes_train_like_one_and_one_resumes_from_two(
    world: Path, make_run: Callable[..., Run], base: Path, tmp_path: Path, mesh: str, rank: int
):
    alone = make_run(
        mesh=MeshShape.parse(mesh), held_out=make_run().data, held_out_batches=1, steps=4, out=tmp_path / "alone"
    )
    alone = replace(alone, lora=LoraConfig(rank), init_from=str(base) if rank else None)
    together = replace(alone, out=tmp_path / "together")
    address, environment = free_address(), os.environ | {"JAX_PLATFORMS": "cpu"}
    adapted = [str(rank), alone.init_from or ""]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(world), str(together.out), address, str(number), mesh, *adapted],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert (together.out / "model" / "model.safetensors").exists()
    train(alone)
    train(together, resume=True)
    np.testing.assert_allclose(losses(together), losses(alone), atol=1e-5)
