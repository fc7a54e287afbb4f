"""Which keys differ between a saved configuration and the current one."""

from collections.abc import Collection, Mapping

Values = Mapping[str, object]  # nested plain values, as a configuration's JSON holds them


def differing_keys(saved: Values, current: Values, free: Collection[str], prefix: str = "") -> list[str]:
    """``key: saved -> current`` for every key whose value differs; what is unset is as good as a missing key.

    Unset is null, false, "none" or an empty list. The dotted keys of ``free`` may differ. ``prefix`` is that of the
    section that is compared, with a dot at its end.
    """
    different = []
    for key in sorted(saved.keys() | current.keys()):
        name = prefix + key
        if name in free:
            continue
        before, after = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            different += differing_keys(before, after, free, name + ".")
        elif _without_unset(before) != _without_unset(after):
            different.append(f"{name}: {before} -> {after}")
    return different


def _without_unset(value: object) -> object:
    """A value without what is unset in it: a file that was written before an option came lacks the key."""
    if not isinstance(value, dict):
        return None if value is False or value in ("none", [], ()) else value
    kept = {key: _without_unset(inner) for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner is not None} or None
