"""Models fetched from the Hugging Face hub, when that is asked for and never otherwise."""

from pathlib import Path

from lwm.core.errors import UserError
from lwm.weights.released import OWNER, STREAM_SUFFIX, released

#: what a model may need: nothing that runs
PATTERNS: tuple[str, ...] = ("*.json", "model*.safetensors", "*.model", "*.jinja", "vqgan/*")


def fetch(name: str) -> Path:
    """Download a model, `owner/name` or the name of one that LWM published, into the hub's cache; return where it is.

    Those of LWM come as streams: its PyTorch files are pickles.

    Raises:
        UserError: huggingface_hub is not installed, there is no such model, or the network does not reach it.
    """
    try:
        import huggingface_hub  # noqa: PLC0415 (an optional package)
    except ImportError:
        raise UserError("to download a model install huggingface_hub: pip install 'lwm[hub]'") from None
    owner, _, short = name.rpartition("/")
    known = released(short) if owner in ("", OWNER) else None
    if not owner and known is None:
        raise UserError(f"--download {name}: give a hub id, owner/name, or one of LWM's models by name")
    repository, patterns = name, PATTERNS
    if known is not None:
        repository, patterns = f"{OWNER}/{known.name}{STREAM_SUFFIX}", known.files
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # what a network and a remote service raise has no common type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot download {repository}: {reason}") from None
