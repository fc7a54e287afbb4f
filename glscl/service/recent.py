"""What was used last, within so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps what was used last, at most so many bytes of it. May be used from several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._items: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        """What was put under a key, if it is still kept."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: str, item: T, size: int) -> None:
        """Keep an item of so many bytes; one that is larger than all that is kept is not."""
        with self._lock:
            if key in self._items or size > self._most:
                return
            self._items[key] = item, size
            self._held += size
            while self._held > self._most:
                _, (_, freed) = self._items.popitem(last=False)
                self._held -= freed
