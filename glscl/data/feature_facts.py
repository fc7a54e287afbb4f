"""What a feature shard set says of itself: whose features they are, how many, and of each sample what it lacks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from glscl.errors import UserError, printable
from glscl.options import MAX_SIZE, Options

AGAIN = "or encode the shards again (`glscl encode`)"
SHOWN = 12  # digits of a fingerprint that messages show

# Files of features that others published.
HDF5, SAFETENSORS = (".h5", ".hdf5"), (".safetensors",)
KNOB = "--features names a folder of .npy files, an .h5 or a .safetensors file"
BETWEEN = "::"
"""Stands between a file and the name of an array in it, in the address of features."""

_Count = Annotated[int, Field(strict=True, ge=1, le=MAX_SIZE)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


def check_printable(text: str) -> str:
    """The text, or a `ValueError`: a terminal would obey a part of it."""
    if not printable(text):
        raise ValueError(f"a character that cannot be printed ({text[:80]!a})")
    return text


class FeatureFacts(Options):
    """The section ``features`` of a manifest whose samples hold features in place of videos."""

    towers: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Fingerprint of the towers (`glscl.models.fingerprint`)."""
    clip: str = Field(max_length=4096)
    """What the towers were called, as in ``model.clip``."""
    pretrained: str = Field(max_length=4096)
    """And their weights, as in ``model.pretrained``."""
    width: _Count
    """D, width of a feature."""
    words: _Count
    """W, token features of each caption."""
    frames: _Count
    """Most frame features of a video."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Frames a second that were taken, up to ``frames``; None of features that others published."""
    dtype: Literal["float32", "bfloat16"]
    padding: tuple[_Number, ...] = ()
    """Feature (D) that the image tower gives for padding; heads that do not hide padding read it."""

    def check_run(self, where: str, words: int, frames: int, rate: float) -> None:
        """Refuse a run whose words, frames or frames a second are not those of the features."""
        for knob, ours, theirs in (
            ("model.max_words", words, self.words),
            ("model.max_frames", frames, self.frames),
            ("data.sample_fps", rate, self.rate if self.rate is not None else rate),
        ):
            if ours != theirs:
                raise UserError(f"{where}: holds features at {knob} {theirs:g}, not {ours:g}: set it to that, {AGAIN}")

    def check_towers(self, where: str, fingerprint: str, name: str) -> None:
        """Refuse features of other towers than those of this fingerprint, which messages call ``name``."""
        if self.towers != fingerprint:
            theirs = f"{self.clip}, {self.pretrained}" if printable(self.clip + self.pretrained) else "other towers"
            raise UserError(
                f"{where}: holds features of the towers {self.towers[:SHOWN]} ({theirs}), not of {fingerprint[:SHOWN]} "
                f"({name}): set model.clip and model.pretrained to those, {AGAIN}"
            )


class FeatureNote(Options):
    """What the ``.json`` of a sample says of its features under ``features``."""

    problem: Annotated[str, Field(max_length=1000), AfterValidator(check_printable)] = ""
    """Why there are none: what the video would be quarantined for. The sample keeps its place, so that the order of the
    stream and the substitutes are those of the videos."""
    frames: int = Field(default=0, ge=0)
    replaced: int = Field(default=0, ge=0)
    """Frames that stand for a picture that does not decode."""
    truncated: tuple[int, ...] = ()
    """Numbers of the captions that were cut to the words."""
