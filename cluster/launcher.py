"""Ray's cluster-launcher file (``ray up FILE``), checked as Ray checks it, without a cloud or a running Ray."""

from typing import Any

import yaml

from glscl.errors import UserError
from glscl.system import storage


def validate_launcher(path: str) -> dict[str, Any]:
    """A launcher file's content with the installed Ray's defaults. Raises `UserError`: `ray up` would refuse it."""
    from jsonschema import ValidationError  # type: ignore[import-untyped]

    from glscl.system.ray_internals.cluster import prepare_launcher

    try:
        values = yaml.safe_load(storage.read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("provider"), dict):
        raise UserError(f"{path}: not a cluster-launcher file: it has no provider section")
    try:
        return prepare_launcher(values)
    except ValidationError as error:
        raise UserError(f"{path}: {error.json_path.removeprefix('$.')}: {error.message[:300]}") from None
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:  # Ray fills in defaults before it looks at the schema
        raise UserError(f"{path}: not in the form that Ray reads ({type(error).__name__}: {error})") from error
