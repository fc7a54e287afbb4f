"""Finding a trained model's folder, without importing torch: a wrong ``--run`` is told at once."""

from glscl.errors import UserError
from glscl.system import storage

FOLDER = "model"
CARD = "model.json"


def find_model(uri: str) -> str:
    """The folder of a model, given that folder or a run directory. Raises `UserError`: there is none."""
    uri = storage.resolve(uri)
    for folder in (uri, storage.join(uri, FOLDER)):
        if storage.exists(storage.join(folder, CARD)):
            return folder
    raise UserError(f"{uri}: no trained model there ({CARD} or {FOLDER}/{CARD}); --run names a finished run directory")
