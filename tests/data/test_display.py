"""What a frame shows: colours, the way up, square pixels; a copy shows the same."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import torch

from glscl.data.video import FrameSampling, VideoError, load_frames, make_copy
from glscl.data.video.display import Form, Turn
from tests.data.drawn import Array, draw, level, levels

FIELDS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 250))  # of a picture, row by row


def fields(width: int = 64, height: int = 48) -> Array:
    picture = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(FIELDS):
        y, x = divmod(number, 2)
        picture[y * height // 2 : (y + 1) * height // 2, x * width // 2 : (x + 1) * width // 2] = colour
    return picture


def shown(data: bytes, size: int = 48) -> Array:
    """The first frame, (S, S, 3)."""
    return load_frames(data, FrameSampling(1, 1.0, size), 0.0, 0.01)[0].permute(1, 2, 0).numpy().astype(int)


def as_is_and_copied(data: bytes, size: int = 48) -> list[Array]:
    return [shown(data, size), shown(make_copy(data, size, 30.0).data, size)]


def size_of(data: bytes) -> tuple[int, int]:
    with av.open(io.BytesIO(data)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


# ------------------------------------------------------------------------------------------------------ the way up

MATRICES = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "half turn": (-1, 0, 0, -1),
    "right": (0, 1, -1, 0),
    "left": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed, half turn": (0, -1, -1, 0),
}


@pytest.mark.parametrize(
    ("name", "pixel"),
    [
        *((name, None) for name in MATRICES),
        ("right", Fraction(2)),
        ("mirrored", Fraction(1, 2)),
        ("left", Fraction(1, 2)),
    ],
)
def test_the_whole_display_matrix(name: str, pixel: Fraction | None) -> None:
    """Each field is looked for where the matrix takes its centre: x' = ax + cy, y' = bx + dy."""
    a, b, c, d = MATRICES[name]
    one = 1 << 16
    data = draw(
        [(0.0, fields()), (0.1, fields())],
        pixel=pixel,
        matrix=(a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30),
    )
    for picture in as_is_and_copied(data):
        for number, colour in enumerate(FIELDS):
            y, x = divmod(number, 2)
            x, y = 2 * x - 1, 2 * y - 1  # -1 and 1, from the centre
            column, row = (24 + 12 * (a * x + c * y), 24 + 12 * (b * x + d * y))
            assert np.abs(picture[row - 2 : row + 2, column - 2 : column + 2] - colour).max() < 30, (name, number)
    width, height = {None: (64, 48), 2: (128, 48), Fraction(1, 2): (48, 72)}[pixel]
    if name in ("right", "left", "transposed", "transposed, half turn"):
        width, height = height, width
    assert size_of(make_copy(data, 48, 30.0).data) == (width, height)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 0, 0, 0), Turn()),
        ((1, 0, 0, 0), Turn()),
        ((0, 0, 0, 1), Turn()),
        ((98, 17, -17, 98), Turn()),  # ten degrees
        ((17, 98, -98, 17), Turn(True, True, False)),  # eighty
        ((17, -98, 98, 17), Turn(True, False, True)),
        ((-98, 17, 17, 98), Turn(False, True, False)),
        ((200, 0, 0, -1), Turn(False, False, True)),
        ((0, 1, 200, 0), Turn(True, False, False)),
        ((3, 2, 0, 1), Turn()),  # sheared: the axes are brought to one length before they are compared
        ((3, 200, 9, 30), Turn(True, False, False)),
    ],
)
def test_the_nearest_of_eight(matrix: tuple[int, ...], turn: Turn) -> None:
    a, b, c, d = matrix
    assert Turn.of_matrix((a, b, 0, c, d, 0, 0, 0, 1)) == turn


# ---------------------------------------------------------------------------------------------------- square pixels


@pytest.mark.parametrize(
    ("form", "short_side", "expected"),
    [
        (Form(160, 120, Fraction(1), Turn()), 48, (64, 48)),
        (Form(120, 160, Fraction(1), Turn()), 48, (48, 64)),
        (Form(161, 120, Fraction(1), Turn()), 48, (64, 48)),  # 64.4
        (Form(160, 120, Fraction(2), Turn()), 48, (128, 48)),
        (Form(160, 120, Fraction(1, 2), Turn()), 48, (48, 72)),
        (Form(160, 120, Fraction(2), Turn(True)), 48, (48, 128)),
        (Form(160, 120, Fraction(3, 4), Turn()), 48, (48, 48)),
        (Form(160, 120, Fraction(2), Turn()), None, (320, 120)),
        (Form(160, 120, Fraction(1), Turn()), None, (160, 120)),
    ],
)
def test_the_size_on_display(form: Form, short_side: int | None, expected: tuple[int, int]) -> None:
    assert form.displayed(short_side) == expected


def test_what_is_displayed_as_it_is_stored() -> None:
    assert Form(8, 8, Fraction(1), Turn()).plain
    assert not Form(8, 8, Fraction(2), Turn()).plain
    assert not Form(8, 8, Fraction(1), Turn(flip_y=True)).plain


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
def test_pixels_that_are_not_square(container: str) -> None:
    """A field of 20 x 40 pixels that are twice as wide as high is a square; 128 x 96 on display, half of it here."""
    picture = level(20, (64, 96))
    picture[28:68, 22:42] = 220
    for pixel, stored in ((Fraction(2), picture), (Fraction(1, 2), picture.swapaxes(0, 1))):
        data = draw([(0.0, stored), (0.1, stored)], container, pixel=pixel)
        for found in as_is_and_copied(data):
            inside = found[:, :, 1] > 120
            assert abs(int(inside[24].sum()) - 20) <= 1
            assert abs(int(inside[:, 24].sum()) - 20) <= 1


def test_the_container_overrules_the_codec() -> None:
    """H.264 says 2 : 1, the mp4 says 1 : 1."""
    data = draw([(0.0, fields()), (0.1, fields())], pixel=Fraction(2))
    at = data.index(b"pasp") + 4
    assert size_of(make_copy(data, 48, 30.0).data) == (128, 48)
    square = data[:at] + bytes((0, 0, 0, 1, 0, 0, 0, 1)) + data[at + 8 :]
    assert size_of(make_copy(square, 48, 30.0).data) == (64, 48)


def test_pixels_that_would_make_an_enormous_picture() -> None:
    data = draw([(0.0, fields())], pixel=Fraction(2))
    at = data.index(b"pasp") + 4
    data = data[:at] + bytes((0, 0, 0, 200, 0, 0, 0, 1)) + data[at + 8 :]
    for load in (lambda: shown(data), lambda: make_copy(data, 48, 30.0)):
        with pytest.raises(VideoError, match=r"picture too narrow"):
            load()


# ---------------------------------------------------------------------------------------------------------- colours

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
WEIGHTS[2] = WEIGHTS[5]  # untagged: as FFmpeg's tools take it
COLOURS = ((200, 30, 40), (20, 180, 60), (40, 60, 220), (128, 128, 128), (240, 230, 20))


def luma_chroma(colour: tuple[int, ...], matrix: int, full: bool) -> tuple[float, float, float]:
    """Y'CbCr of a colour by its definition (ITU-T H.273, 8.3)."""
    weight_r, weight_b = WEIGHTS[matrix]
    r, g, b = (value / 255 for value in colour)
    y = weight_r * r + (1 - weight_r - weight_b) * g + weight_b * b
    cb, cr = (b - y) / 2 / (1 - weight_b), (r - y) / 2 / (1 - weight_r)
    if full:
        return 255 * y, 128 + 255 * cb, 128 + 255 * cr
    return 16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr


def stripes(matrix: int, full: bool, pix_fmt: str) -> av.VideoFrame:
    """The colours as stripes of 16 x 48 pixels, in planes."""
    bits = 2 if "10" in pix_fmt else 0
    values = [luma_chroma(colour, matrix, full) for colour in COLOURS]
    frame = av.VideoFrame(16 * len(COLOURS), 48, pix_fmt)
    for plane, target in enumerate(frame.planes):
        row = np.repeat([round(value[plane] * (1 << bits)) for value in values], target.width // len(COLOURS))
        rows = np.zeros((target.height, target.line_size // (2 if bits else 1)), np.uint16 if bits else np.uint8)
        rows[:, : target.width] = row
        target.update(rows.tobytes())
    return frame


@pytest.mark.parametrize(
    ("matrix", "full", "pix_fmt"),
    [
        *((matrix, full, "yuv420p") for matrix in WEIGHTS for full in (False, True, None)),
        *((9, full, pix_fmt) for full in (False, True) for pix_fmt in ("yuv444p", "yuv420p10le")),
    ],
)
def test_matrix_and_range_as_tagged(matrix: int, full: bool | None, pix_fmt: str) -> None:
    frame = stripes(matrix, bool(full), pix_fmt)
    tags = {"colorspace": matrix} | ({} if full is None else {"color_range": 2 if full else 1})
    data = draw([(0.0, frame), (0.1, frame)], "matroska", "ffv1", pix_fmt, tags=tags)
    for picture, tolerance in zip(as_is_and_copied(data), (4, 9), strict=True):
        for number, colour in enumerate(COLOURS[1:4], 1):
            centre = 24 + 16 * (number - 2)
            found = picture[20:28, centre - 2 : centre + 2].mean((0, 1))
            assert np.abs(found - colour).max() <= tolerance, (number, found)


def test_a_copy_needs_no_tags(make_video: Any) -> None:
    """It is what every reader takes an untagged picture for, and says so."""
    frame = stripes(1, True, "yuv420p")
    data = draw([(0.0, frame), (0.1, frame)], "matroska", "ffv1", tags={"colorspace": 1, "color_range": 2})
    with av.open(io.BytesIO(make_copy(data, 48, 30.0).data)) as container:
        copied = next(container.decode(video=0))
    assert (copied.colorspace, copied.color_range, copied.color_primaries, copied.color_trc) == (6, 1, 6, 6)
    assert copied.format.name == "yuv420p"
    plain = luma_chroma(COLOURS[3], 6, False)
    assert abs(int(copied.to_ndarray()[24, 16 * 3 + 8]) - plain[0]) <= 2


@pytest.mark.parametrize(
    ("pix_fmt", "codec"),
    [("gray", "ffv1"), ("gray10le", "ffv1"), ("yuva420p", "ffv1"), ("rgb24", "libx264rgb")],
)
def test_other_kinds_of_pixels(pix_fmt: str, codec: str) -> None:
    data = draw([(0.0, level(150)), (0.1, level(150))], "matroska", codec, pix_fmt)
    for picture in as_is_and_copied(data):
        assert np.abs(picture - 150).max() <= 3


def test_interlaced_pictures_are_taken_as_they_are_woven() -> None:
    """Lines of two fields of other colours: taken apart, the chroma of each would be spread over its field."""
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[0::4] = picture[1::4] = (220, 30, 30)
    picture[2::4] = picture[3::4] = (30, 30, 220)
    how: dict[str, Any] = {"container": "matroska", "options": {"x264-params": "tff=1:interlaced=1"}}
    data = draw([(0.0, picture), (0.1, picture)], **how)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    assert frame.interlaced_frame, "the test wants the mark"
    unmarked = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p").reformat(format="rgb24", threads=1)
    expected = unmarked.to_ndarray()[:, 16:64]
    assert np.array_equal(shown(data), expected)
    assert np.abs(expected.astype(int) - picture[:, 16:64]).max() < 60, "the test wants fields that are told apart"


# ------------------------------------------------------------------------------------------------- changes of shape


def disc(width: int, height: int, grey: int) -> Array:
    """A disc in the centre, half as large as the short side."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(x - width / 2, y - height / 2) < min(width, height) / 4
    return np.where(inside[..., None], grey, 0).astype(np.uint8).repeat(3, 2)


@pytest.mark.parametrize("second", [(48, 96), (128, 48), (192, 192), (32, 32)])
def test_each_picture_has_its_own_shape(second: tuple[int, int]) -> None:
    """The copy has the first one's; the square in its centre is that of the file."""
    first = draw(((n / 10, disc(96, 64, 250)) for n in range(10)), "mpegts")
    data = first + draw(((1 + n / 10, disc(*second, 150)) for n in range(10)), "mpegts")
    copy = make_copy(data, 48, 30.0).data
    assert size_of(copy) == (72, 48)
    sampling = FrameSampling(4, 1000.0, 48)
    for frames, tolerance in ((load_frames(data, sampling), 12), (load_frames(copy, sampling), 12)):
        assert len(frames) == 4
        for number, frame in enumerate(frames[:, 1]):
            grey = 250 if number < 2 else 150
            for y, x, expected in ((24, 24, 1), (24, 15, 1), (15, 24, 1), (24, 9, 0), (9, 24, 0), (24, 38, 0)):
                assert abs(int(frame[y, x]) - grey * expected) <= tolerance, (number, y, x)


def test_a_shape_of_odd_sides_is_cropped_to_even_ones() -> None:
    data = draw([(0.0, fields(62, 46)), (0.1, fields(62, 46))])
    assert size_of(make_copy(data, 24, 30.0).data) == (32, 24)  # 32.3
    assert size_of(make_copy(data, 25, 30.0).data) == (32, 24)  # 33.7
    assert size_of(make_copy(data, 1, 30.0).data) == (2, 2)


def test_the_frame_is_the_centre() -> None:
    """Of 80 columns the middle 48, bit by bit."""
    picture = np.arange(80, dtype=np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2) * 3
    data = draw([(0.0, picture), (0.1, picture)], "matroska", "ffv1", "bgr0")
    assert np.array_equal(shown(data), picture[:, 16:64])
    assert torch.equal(
        load_frames(data, FrameSampling(1, 1.0, 48)), torch.from_numpy(picture[:, 16:64]).permute(2, 0, 1)[None]
    )
    assert levels(data, 1) == [round(float(picture[:, 16:64].mean()))]
