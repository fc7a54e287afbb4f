"""Bring decoded pictures to display form: as a player shows them, in RGB, upright, with square pixels.

The colour matrix and range are those that the file states; one that states none is taken for BT.601, limited range, as
FFmpeg's tools take it. The whole display matrix counts, mirrors too. Interlaced pictures are taken as they are woven.
Both `decode` and `encode` go through here, so that a copy shows what its original shows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from glscl.data.video.budget import check_size


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the eight ways to lay down a picture: first transposed, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @staticmethod
    def of_matrix(matrix: tuple[int, ...]) -> Turn:
        """Read a display matrix ``(a, b, u, c, d, v, x, y, w)``: x' = ax + cy, y' = bx + dy (av_display_rotation_get).

        A rotation between two of the eight is taken for the nearest of them; a matrix without any axis for none.
        """
        a, b, _, c, d = matrix[:5]
        across, down = math.hypot(a, c), math.hypot(b, d)
        if not across or not down:
            return Turn()
        if abs(b / down) > abs(a / across):
            return Turn(True, c < 0, b < 0)
        return Turn(False, a < 0, d < 0)

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Lay down (H, W, 3)."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


@dataclass(frozen=True, slots=True)
class Form:
    """How a picture of ``width`` x ``height`` pixels is displayed; ``pixel`` is width : height of one of them."""

    width: int
    height: int
    pixel: Fraction
    turn: Turn

    @property
    def plain(self) -> bool:
        """Whether the picture is displayed as it is stored."""
        return self.pixel == 1 and self.turn == Turn()

    def displayed(self, short_side: int | None = None) -> tuple[int, int]:
        """Width and height on display, with a short side of so many pixels (None: of the stored ones, or more)."""
        across, down = self.width * self.pixel.numerator, self.height * self.pixel.denominator  # the shape
        if self.turn.transpose:
            across, down = down, across
        if short_side is None:  # pixels are added to one side, never taken away from the other
            short_side = min(self.width, self.height)
        if across < down:
            return short_side, short_side * down // across
        return short_side * across // down, short_side


class Display:
    """Brings the pictures of one stream to display form.

    Args:
        stream: PyAV's video stream.
        augment: applied to upright pictures, uint8 (3, H, W), before they are resized.
    """

    def __init__(self, stream: av.VideoStream, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self._augment = augment
        self._context = stream.codec_context
        self._converter = VideoReformatter()  # one per video, one thread: a scaler's threads cost more than a picture
        container, codec = stream.sample_aspect_ratio, self._context.sample_aspect_ratio
        self._of_container = container if container and container != codec else None  # it overrules the codec's
        self._of_size: dict[tuple[int, int], Fraction] = {}

    def form(self, frame: av.VideoFrame) -> Form:
        """Return how a decoded picture is displayed."""
        size = frame.width, frame.height
        of_codec = Fraction(self._context.sample_aspect_ratio or 1)
        if size == (self._context.width, self._context.height):  # else a late frame of the size before
            self._of_size[size] = of_codec
        pixel = self._of_container or self._of_size.get(size, of_codec)
        side_data = frame.side_data.get(Type.DISPLAYMATRIX)
        turn = Turn.of_matrix(struct.unpack("=9i", bytes(side_data))) if side_data is not None else Turn()
        form = Form(*size, pixel, turn)
        if not form.plain:
            check_size(*form.displayed())
        return form

    def picture(self, frame: av.VideoFrame, short_side: int) -> Tensor:
        """Return a picture in display form whose short side has so many pixels: (3, H, W) uint8."""
        form = self.form(frame)
        stored = np.asarray(self._converter.reformat(_woven(frame), format="rgb24", threads=1).to_ndarray(), np.uint8)
        upright = np.ascontiguousarray(form.turn.apply(stored))
        return self.resized(torch.from_numpy(upright).permute(2, 0, 1), short_side, form)

    def resized(self, picture: Tensor, short_side: int, form: Form) -> Tensor:
        """Augment an upright picture and resize it to its shape on display: (3, H, W) to (3, H', W')."""
        return resize(picture if self._augment is None else self._augment(picture), short_side, form)

    def square(self, frame: av.VideoFrame, size: int) -> Tensor:
        """Return the centre of `picture`: (3, S, S) uint8."""
        return crop_centre(self.picture(frame, size), size)


def _woven(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the frame without its mark of being interlaced, by which swscale would take its fields apart."""
    if not frame.interlaced_frame:
        return frame
    woven = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, woven.planes, strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)
        into = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        width = min(source.line_size, target.line_size)
        into[: source.height, :width] = rows[: source.height, :width]
    woven.colorspace, woven.color_range = frame.colorspace, frame.color_range
    return woven


def resize(picture: Tensor, short_side: int, form: Form) -> Tensor:
    """Resize an upright picture to its shape on display (bicubic, antialiased): (3, H, W) to (3, H', W')."""
    width, height = form.displayed(short_side)
    if picture.shape[-2:] != (height, width):
        pictures = picture.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # what lies by channels or by rows stays so
        picture = F.interpolate(pictures, (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
    return picture


def crop_centre(picture: Tensor, height: int, width: int | None = None) -> Tensor:
    """Crop the centre, or fill up with black around it: (3, H, W) to (3, ``height``, ``width`` or ``height``)."""
    width = width or height
    down, across = height - picture.shape[-2], width - picture.shape[-1]
    if down > 0 or across > 0:
        picture = F.pad(picture, [max(0, n) for n in (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)])
    top, left = round((picture.shape[-2] - height) / 2), round((picture.shape[-1] - width) / 2)
    return picture[:, top : top + height, left : left + width]


BT601 = {"dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.MPEG}
"""Colours of copies: what every reader takes an untagged picture for."""
