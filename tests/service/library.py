"""A real index of a few toy clips, with a small model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

from glscl.commands import index_build
from glscl.data.toy import write_toy
from tests.retrieval.test_model import write_run

HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'


def build_indexes(folder: Path, videos: int = 8, indexes: int = 1) -> list[str]:
    """Index toy clips, of which the second has a hostile caption and a hostile name; returns the indexes' folders."""
    records = write_toy("toy_clips", "test", videos, 0, str(folder / "toy"), 1)
    library, rows = folder / "library", []
    library.mkdir()
    for number, record in enumerate(records):
        captions = list(record.captions) if number != 1 else [HOSTILE]
        name = record.video_id if number != 1 else "<svg onload=alert(1)> ..%2f"
        (folder / "toy" / "videos" / f"{record.video_id}.mp4").rename(library / f"{name}.mp4")
        rows.append({"id": name, "captions": captions, "parity": "odd" if number % 2 else "even", "number": number})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = []
    for number in range(indexes):
        (folder / str(number)).mkdir()
        run = write_run(folder / str(number), max_frames=3 - number)
        output = str(folder / f"{number}.index")
        words = [str(library), "--run", run, "--output", output, "--metadata", str(folder / "rows.jsonl")]
        index_build.run(words, "glscl index build")
        made.append(output)
    return made
