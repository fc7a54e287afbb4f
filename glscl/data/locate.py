"""Find the video file of each id, though names in annotations and on disk differ in extension, folder and accents."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial

from glscl.data.records import compose_accents, list_some
from glscl.errors import UserError
from glscl.system import storage

# Preferred first where a folder has one video twice. "null" is no joke: Flickr gave DiDeMo such a name.
VIDEO_EXTENSIONS = (
    *("mp4", "m4v", "mkv", "webm", "mov", "qt", "avi", "divx", "mpg", "mpeg", "wmv", "asf", "flv", "f4v", "ogv"),
    *("3gp", "3gpp", "3g2", "ts", "mts", "m2ts", "vob", "gif", "", "null"),
)
# What downloaders and feature extractors leave beside a video under the same name.
OTHER_EXTENSIONS = {
    *("aac", "csv", "description", "flac", "h5", "hdf5", "jpeg", "jpg", "json", "lock", "log", "m4a", "md", "md5"),
    *("mp3", "npy", "npz", "ogg", "opus", "part", "pkl", "png", "pt", "sha256", "srt", "tar", "tmp", "tsv", "txt"),
    *("url", "vtt", "wav", "webp", "xml", "yaml", "ytdl", "zip"),
}
_BLOCK = 8 << 20
_RANK = {extension: rank for rank, extension in enumerate(VIDEO_EXTENSIONS)}


def locate_videos(video_ids: Iterable[str], folder: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Find the video file of every id in a folder and all folders below it, walking them once.

    An id is a file name with its extension, without one, or a path under the folder (``./name`` is a file of the
    folder itself). In this order a file matches that has the id's very name, the id followed by an extension, or the
    id's name under another video extension (videos that were re-encoded). The case of extensions is ignored, that of
    names is not. Accents composed or apart (Unicode NFC, NFD) are the same name; where a folder has both, the very name
    is taken.

    Of files that differ in their extension alone the order of ``VIDEO_EXTENSIONS`` decides, which a note says; of files
    of one name with the same bytes the shorter path, then the alphabet. Different files of one name are refused.

    Returned are the path or URI of each id that has a file, the ids that have none, both in the order given, and notes
    for the user.
    """
    files = _FileIndex(folder)
    root = storage.resolve(folder)
    located: dict[str, str] = {}
    missing: list[str] = []
    ambiguous: list[str] = []
    passed_over: list[str] = []
    for video_id in dict.fromkeys(video_ids):
        candidates = files.candidates(video_id, video_id.removeprefix(f"{root}/").removeprefix("./"))
        if not candidates:
            missing.append(video_id)
            continue
        chosen = candidates[0]
        located[video_id] = storage.join(root, chosen)
        rivals = [path for path in candidates[1:] if not _same_bytes(root, chosen, path)]
        same_name = [path for path in rivals if _preference(path)[0] == _preference(chosen)[0]]
        if same_name:
            ambiguous.append(f"{video_id} ({', '.join([chosen, *same_name])})")
        elif rivals:
            passed_over.append(f"{video_id} ({chosen}, not {', '.join(rivals)})")
    if ambiguous:
        raise UserError(
            f"{folder}: {len(ambiguous):,} of {len(located) + len(missing):,} ids fit several different files of "
            f"one name: {list_some(ambiguous)}; name the folder meant with --videos, or give paths under it as ids"
        )
    what = "ids fit files of several extensions, of which one is taken"
    notes = [f"{len(passed_over):,} of {len(located):,} {what}: {list_some(passed_over)}"] if passed_over else []
    return located, missing, notes


class _FileIndex:
    """Paths of a folder's files, relative to it; each is listed under its name and under its path."""

    def __init__(self, folder: str) -> None:
        self.by_name: dict[str, list[str]] = defaultdict(list)  # with extension
        self.by_stem: dict[str, list[str]] = defaultdict(list)  # without
        for path in walk_files(folder, "--videos names the folder of video files"):
            for form in {path, path.rpartition("/")[2]}:
                stem, extension = _split(form)
                if extension not in OTHER_EXTENSIONS:
                    self.by_name[_key(form)].append(path)
                    self.by_stem[compose_accents(stem)].append(path)

    def candidates(self, video_id: str, name: str) -> list[str]:
        """Files that may be the video of an id, the preferred first; ``name`` is the id without the folder's path."""
        stem, extension = _split(compose_accents(name))
        paths = self.by_name.get(_key(name)) or self.by_stem.get(compose_accents(name)) or []
        if not paths and extension in _RANK:
            paths = self.by_stem.get(stem, [])
        if name != video_id:  # a path from the folder on, not the name of a file anywhere below it
            paths = [path for path in paths if path.count("/") == name.count("/")]
        very_name = [path for path in paths if _split(name)[0] in path]  # with accents in the same form
        return sorted(very_name or paths, key=_preference)


def describe_missing(missing: list[str], total: int, folder: str) -> str:
    """Say in one line how many of ``total`` videos have no file, and name the first."""
    return f"{len(missing):,} of {total:,} videos are not in {folder}: {list_some(missing)}"


def walk_files(folder: str, knob: str) -> Iterator[str]:
    """Yield the paths, relative to the folder, of the files at any depth below it; ``knob`` is said to change it."""
    fs, root = storage.filesystem(folder)
    if storage.is_remote(folder):
        fs.invalidate_cache(root)
        try:
            paths = fs.find(root)
        except FileNotFoundError:
            paths = []
        if not paths:  # an object store has no empty folders
            raise UserError(f"{folder}: no such folder, or nothing in it; {knob}")
        yield from (path[len(root) :].lstrip("/") for path in paths)
        return
    if not os.path.isdir(root):
        problem = "not a folder" if os.path.exists(root) else "no such folder"
        raise UserError(f"{folder}: {problem}; {knob}")
    seen = set()
    # not fs.find: data sets are often put together from links to folders, which it does not enter
    for parent, folders, names in os.walk(root, followlinks=True, onerror=partial(_unreadable, knob)):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder that was entered before, perhaps one above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in names:
            path = os.path.join(parent, name)
            if os.path.isfile(path):  # not a link into nowhere
                yield os.path.relpath(path, root).replace(os.sep, "/")


def _unreadable(knob: str, error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {knob}")


def _split(name: str) -> tuple[str, str]:
    """Cut off the last extension, in lower case: ``a.b.MP4`` -> ``a.b``, ``mp4``; ``a.`` and ``a`` -> ``a``, empty."""
    head, slash, tail = name.rpartition("/")
    stem, _, extension = tail.rpartition(".")
    return (head + slash + stem, extension.lower()) if stem else (name, "")


def _key(name: str) -> str:
    """The name with its accents composed and its extension in lower case."""
    stem, extension = _split(compose_accents(name))
    return f"{stem}.{extension}" if len(stem) < len(compose_accents(name)) else stem


def _preference(path: str) -> tuple[int, int, str]:
    return _RANK.get(_split(path)[1], len(_RANK)), len(path), path


def _same_bytes(root: str, one: str, other: str) -> bool:
    one, other = storage.join(root, one), storage.join(root, other)
    if storage.size(one) != storage.size(other):
        return False
    with storage.open_read(one) as first, storage.open_read(other) as second:
        return all(block == second.read(_BLOCK) for block in iter(partial(first.read, _BLOCK), b""))
