"""Draw the toy videos and encode them as h264 in mp4.

Nothing but the attributes differs systematically between two videos: position, size, path length, timing, shade and
duration are drawn independently of them. Opposite events (left and right, growing and shrinking) show the same
pictures in reverse, so a bag of frames cannot tell them apart: only their order in time can.
"""

import io
import json
import os
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise, repeat
from multiprocessing import get_context

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from glscl.data.records import Record
from glscl.data.toy.domains import FPS, domain_spec, toy_records
from glscl.data.toy.spec import CHANGES
from glscl.system.progress import Progress

SIDE = 64  # pixels
KEYFRAME_EVERY = 8  # frames

Floats = npt.NDArray[np.float32]

_INK = {
    "toy_clips": {"red": (215, 35, 35), "green": (30, 170, 50), "blue": (40, 70, 225), "yellow": (230, 205, 30)},
    "toy_stories": {"red": (190, 30, 55), "green": (25, 150, 80), "blue": (45, 100, 225), "yellow": (225, 190, 40)},
    "toy_stills": {
        "red": (202, 32, 45),
        "green": (28, 160, 65),
        "blue": (42, 85, 225),
        "yellow": (228, 198, 35),
        "white": (245, 245, 245),
        "black": (18, 18, 18),
    },
    "plain": {"red": (215, 35, 35), "green": (30, 170, 50), "blue": (40, 70, 225), "yellow": (230, 205, 30)},
    "textured": {"red": (190, 30, 55), "green": (25, 150, 80), "blue": (45, 100, 225), "yellow": (225, 190, 40)},
    "night": {"red": (150, 30, 30), "green": (35, 125, 50), "blue": (45, 60, 165), "yellow": (150, 135, 35)},
}
"""Colours by domain, or by visual style where that is a factor."""
_GROUNDS = {"plain": ("grey", "pink"), "textured": ("stripes", "checks", "bricks", "sand"), "night": ("dark",)}
_GRAIN = {"night": 34.0}  # range of a camera's noise, another in every frame
_DOT = 4.5  # radius in pixels
_REST = 0.08  # before and after an event, as a share of its time
_PLAIN = {"grey": (118, 118, 118), "pink": (240, 165, 190), "dark": (38, 38, 52)}
_NEW_INK = {"whitens": (250, 250, 250), "blackens": (12, 12, 12)}
_STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_SMALL, _MIDDLE, _LARGE = 6.5, 9.0, 11.5  # radius in pixels
_CORNERS = {"top": (9.0, 9.0), "bottom": (9.0, SIDE - 9.0)}
_SIZES = {"grows": (_SMALL, _LARGE), "shrinks": (_LARGE, _SMALL), "small": (7.0, 7.0), "large": (10.5, 10.5)}
_PLACE = {"left": (-16, 0), "right": (16, 0), "top": (0, -16), "bottom": (0, 16), "middle": (0, 0)}  # as paths end


def render_video(domain: str, record: Record, seed: int) -> bytes:
    """Draw one video: mp4, h264, yuv420p, 64 x 64 pixels, 8 frames a second; equal arguments give equal bytes."""
    domain_spec(domain)  # or an error that names the domain
    return _encode(_draw(domain, record, random.Random(f"{record.video_id}/{seed}/picture")))


def write_toy(domain: str, split: str, count: int, seed: int, folder: str, processes: int = 1) -> list[Record]:
    """Write ``videos/<video_id>.mp4`` and ``annotations.jsonl`` (the generic form) into a folder; see `toy_records`."""
    records = toy_records(domain, split, count, seed)
    videos = os.path.join(folder, "videos")
    os.makedirs(videos, exist_ok=True)
    arguments = (repeat(domain), records, repeat(seed), repeat(videos))
    with Progress(f"drawing {domain}/{split}", count, "videos") as progress, ExitStack() as stack:
        written: Iterable[None] = map(_write_video, *arguments)
        if processes > 1:
            # spawn, not fork: the caller may hold threads (Ray, torch), and this package imports quickly
            pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context("spawn")))
            written = pool.map(_write_video, *arguments, chunksize=max(1, min(16, count // (4 * processes))))
        for _ in written:
            progress.advance()
    with open(os.path.join(folder, "annotations.jsonl"), "w", encoding="utf-8") as file:
        for record in records:
            row = {name: getattr(record, name) for name in ("video_id", "captions", "duration", "attributes")}
            file.write(json.dumps(row) + "\n")
    return records


def _write_video(domain: str, record: Record, seed: int, folder: str) -> None:
    with open(os.path.join(folder, f"{record.video_id}.mp4"), "wb") as file:
        file.write(render_video(domain, record, seed))


def _draw(domain: str, record: Record, draw: random.Random) -> npt.NDArray[np.uint8]:
    """Frames (T, 64, 64, 3)."""
    attributes = _read_attributes(record)
    events = attributes["order"].split("-") if "order" in attributes else []
    style = domain_spec(domain).pictures
    palette = _INK[style or domain]
    count = round((record.duration or 0.0) * FPS)
    time = np.linspace(0.0, 1.0, count, dtype=np.float32)
    progress = dict(zip(events, _progress(time, len(events), draw), strict=True))

    path = np.zeros((count, 2), dtype=np.float32)
    for key in (event for event in events if event != "change"):
        path += draw.uniform(30.0, 34.0) * progress[key][:, None] * np.array(_STEP[attributes[key]], dtype=np.float32)
    # centre the path's bounding box, so that no direction starts nearer to a border than another one
    path -= (path.max(axis=0) + path.min(axis=0)) / 2
    path += np.array(_PLACE[attributes.get("place", "middle")], dtype=np.float32)
    path += SIDE / 2 + np.array([draw.uniform(-3.0, 3.0), draw.uniform(-3.0, 3.0)], dtype=np.float32)

    change = progress.get("change", np.zeros(count, dtype=np.float32))
    before, after = _SIZES.get(attributes.get("size") or attributes.get("change", ""), (_MIDDLE, _MIDDLE))
    spread = 0.2 if "size" in attributes else 0.07  # stills show every size that the others go through
    radius = (before + (after - before) * change) * draw.uniform(1 - spread, 1 + spread)
    shade = np.array([draw.uniform(-14, 14) for _ in range(3)], dtype=np.float32)
    ink = np.array(palette[attributes["colour"]], dtype=np.float32) + shade
    inks = np.repeat(ink[None], count, axis=0)
    if attributes.get("change") in _NEW_INK:
        inks += change[:, None] * (np.array(_NEW_INK[attributes["change"]], dtype=np.float32) - ink)

    cover = _cover(attributes["shape"], path, radius)[..., None]
    back = _background(attributes, style, draw)[None]
    frames: Floats = (back * (1 - cover) + inks[:, None, None, :] * cover).astype(np.float32)
    if "dot" in attributes:
        frames = _with_dot(frames, _CORNERS[attributes["corner"]], np.array(palette[attributes["dot"]], np.float32))
    return np.clip(np.rint(_with_grain(frames, style, draw)), 0, 255).astype(np.uint8)


def _read_attributes(record: Record) -> dict[str, str]:
    """Attributes of a record; a single event is an order of one."""
    attributes = {name: str(value) for name, value in record.attributes.items()}
    if event := attributes.get("event"):
        order = "change" if event in CHANGES else "movement"
        attributes |= {order: event, "order": order}
    return attributes


def _background(attributes: dict[str, str], style: str, draw: random.Random) -> Floats:
    """What is behind everything, (64, 64, 3): an attribute, or one of those of a visual style.

    From here on, only what belongs to the visual style is drawn: what came before is the same in all of them.
    """
    name = attributes.get("background") or attributes.get("ground") or draw.choice(_GROUNDS[style])
    return _plain(name, draw) if name in _PLAIN else _ground(name, draw)


def _with_dot(frames: Floats, centre: tuple[float, float], ink: Floats) -> Floats:
    """Frames with a small disc that stays where it is."""
    cover = _cover("disc", np.array([centre], dtype=np.float32), np.array([_DOT], dtype=np.float32))[..., None]
    covered: Floats = frames * (1 - cover) + ink * cover
    return covered


def _with_grain(frames: Floats, style: str, draw: random.Random) -> Floats:
    """Frames with the noise of a camera, where the visual style has any."""
    if style not in _GRAIN:
        return frames
    noise = np.random.default_rng(draw.getrandbits(64)).random((*frames.shape[:3], 1)).astype(np.float32)
    grained: Floats = frames + _GRAIN[style] * (noise - 0.5)
    return grained


def _progress(time: Floats, events: int, draw: random.Random) -> list[Floats]:
    """How far each event has gone (0 to 1) at each time: one after the other, with a short rest between."""
    rest = _REST / max(events, 1)
    spans = pairwise(_borders(events, draw))
    return [np.clip((time - (start + rest)) / (end - start - 2 * rest), 0.0, 1.0) for start, end in spans]


def _borders(events: int, draw: random.Random) -> list[float]:
    """Where one event gives way to the next, in shares of the video, both ends included; none without events."""
    if not events:
        return []
    jitter = 0.12 / events
    return [0.0, *(k / events + draw.uniform(-jitter, jitter) for k in range(1, events)), 1.0]


def event_times(record: Record, seed: int) -> list[tuple[str, float, float]]:
    """What happens in a video that `render_video` draws, and from which second to which, in order."""
    attributes = _read_attributes(record)
    events = attributes["order"].split("-") if "order" in attributes else []
    rest = _REST / max(len(events), 1)
    spans = pairwise(_borders(len(events), random.Random(f"{record.video_id}/{seed}/picture")))
    last = (round((record.duration or 0.0) * FPS) - 1) / FPS  # the last picture's second is the end of the last event
    return [
        (attributes[event], (start + rest) * last, (end - rest) * last)
        for event, (start, end) in zip(events, spans, strict=True)
    ]


def _cover(shape: str, centre: Floats, radius: Floats) -> Floats:
    """Share of each pixel that the shape covers, (T, 64, 64)."""
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    x = grid[None, None, :] - centre[:, 0, None, None]
    y = grid[None, :, None] - centre[:, 1, None, None]
    r = radius[:, None, None]
    if shape == "disc":
        distance = np.sqrt(x * x + y * y) - r
    else:
        wide, high = (1.6, 0.55) if shape == "plank" else (0.55, 1.6)
        distance = np.maximum(abs(x) - wide * r, abs(y) - high * r)
    cover: Floats = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
    return cover


def _plain(name: str, draw: random.Random) -> Floats:
    """A background of one colour, (64, 64, 3), a little lighter or darker every time."""
    colour = np.array(_PLAIN[name], dtype=np.float32) + draw.uniform(-12, 12)
    return np.broadcast_to(colour, (SIDE, SIDE, 3)).astype(np.float32)


def _ground(name: str, draw: random.Random) -> Floats:
    """A textured background, (64, 64, 3)."""
    x, y = np.meshgrid(np.arange(SIDE) + draw.randrange(SIDE), np.arange(SIDE) + draw.randrange(SIDE))
    noise = np.random.default_rng(draw.getrandbits(64)).random((SIDE, SIDE)).astype(np.float32)
    if name == "stripes":
        mix, dark, light = (x // 4) % 2, (96, 100, 112), (124, 128, 140)
    elif name == "checks":
        mix, dark, light = (x // 8 + y // 8) % 2, (84, 84, 88), (124, 124, 120)
    elif name == "bricks":
        mortar = (y % 8 == 0) | ((x + 8 * ((y // 8) % 2)) % 16 == 0)
        mix, dark, light = mortar.astype(int), (142, 112, 98), (176, 160, 150)
    else:
        mix, dark, light = np.zeros_like(x), (176, 160, 130), (176, 160, 130)
    low, high = np.array(dark, dtype=np.float32), np.array(light, dtype=np.float32)
    picture = low + (high - low) * mix[..., None] + draw.uniform(-10, 10)
    grain = 30.0 if name == "sand" else 6.0
    return (picture + grain * (noise[..., None] - 0.5)).astype(np.float32)


def _encode(frames: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        # one thread: x264's output then does not depend on the machine's number of cores
        stream.options = {"preset": "ultrafast", "crf": "23", "g": str(KEYFRAME_EVERY), "threads": "1"}
        convert = VideoReformatter()  # one for all frames: setting it up costs more than using it
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = convert.reformat(frame, format="yuv420p", threads=1)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
