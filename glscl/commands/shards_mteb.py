"""`glscl shards mteb`: a video task of mteb (MVEB) as files that `glscl shards build` takes."""

from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options

HELP = "a video task of mteb (MVEB) -> video files and captions for `glscl shards build`"
ORDER = 62


class Mteb(Options):
    """Write the videos and captions of a task in mteb's parquet layout as files, for `glscl shards build`."""

    task: str
    """Folder of the task's data set, as `hf download --repo-type dataset` writes it."""
    output: str
    """Local folder for the video files and their captions, mteb_SPLIT.jsonl."""
    split: str = "test"
    """Split of the task."""


def run(words: list[str], program: str) -> str:
    """Read the tables, then write each video as a file."""
    options = parse_options(Mteb, words, program)
    from glscl.data.mteb_layout import read_task, write_files  # with pyarrow
    from glscl.system import storage

    if storage.is_remote(options.output) or storage.is_remote(options.task):
        raise UserError("--task and --output are local folders; `glscl shards build` writes to s3://")
    storage.check_writable(options.output, "--output")
    task = read_task(options.task, options.split)
    name = write_files(task, options.output, options.split)
    for note in task.notes:
        print(note)
    print(
        f"next: glscl shards build --benchmark jsonl --annotations {options.output} --split {name} "
        f"--videos {options.output} --domain NAME --output SHARDS"
    )
    return f"{options.output}: {len(task.ids)} videos, {sum(map(len, task.captions))} captions, split {name}"
