"""Safe loading of checkpoint files: tensors and plain values only, because a pickle may run code.

DeepSpeed reads its files with ``weights_only=False``. An environment variable of torch's overrules that, so every load
inside `safe_loading` goes through torch's restricted unpickler. Where a checkpoint comes from then does not matter.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from glscl.errors import RunStoppedError

SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def safe_loading(folder: str, source: str | None = None) -> Iterator[None]:
    """Let ``torch.load`` make tensors, plain values and DeepSpeed's three value classes only, whatever its caller asks.

    Every ``.pt`` file below the folder is looked through first, so that the error names the file; ``source`` is what
    messages call the checkpoint. Raises `RunStoppedError`: a file asks for more, or is not one of ``torch.save``'s.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    source = source or folder
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            for path in sorted(Path(folder).rglob("*.pt")):
                _check(path, source)
            yield
    except pickle.UnpicklingError as error:  # what the look from outside did not show
        raise _refused(source, str(error).splitlines()[0]) from None
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def _check(path: Path, source: str) -> None:
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise RunStoppedError(f"checkpoint {source}: {path.name} is not readable ({error})") from None
    if foreign:
        raise _refused(source, f"{path.name} asks for {', '.join(sorted(foreign))}")


def _refused(source: str, what: str) -> RunStoppedError:
    return RunStoppedError(
        f"checkpoint {source} is refused: {what}, which could run code and which no checkpoint of this project holds; "
        f"choose another --name, or put back the run's own files"
    )
