"""What no model can be is refused by the name of its field, wherever it was written."""

import json
from typing import Any

import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig

CONFIG = ModelConfig(Vocab(16), 8, 16, 2, 2, 2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": float("inf")}, r"rope_theta is inf: it must not be greater than 1e\+30"),
        ({"rope_theta": float("nan")}, "rope_theta is nan: it must be positive"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"max_context": 10**30}, "max_context is 10+: it must not be greater than 2147483647"),
        ({"num_layers": 10**30}, "num_layers is 10+"),
        ({"hidden_size": 0}, "hidden_size is 0: it must be positive"),
        ({"vocab": {"text_size": 16, "bos_id": 10**9}}, "bos_id of a vocabulary is 1000000000"),
        ({"vocab": {"text_size": -64, "vision_size": 80}}, "text_size of a vocabulary is -64"),
    ],
)
def test_configurations_of_no_model(changes: dict[str, Any], message: str) -> None:
    values = json.loads(json.dumps(CONFIG.to_json() | changes))
    with pytest.raises(UserError, match=message):
        ModelConfig.from_json(values)
    assert ModelConfig.from_json(CONFIG.to_json()) == CONFIG
