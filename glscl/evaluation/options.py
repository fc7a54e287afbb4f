"""Configuration of evaluation."""

from pydantic import Field, field_validator

from glscl.data.frame_changes import FrameOrder
from glscl.options import Options


class EvaluationConfig(Options):
    """Held-out scoring during training, and the test after it."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between two scorings of data.validation; the last epoch is always scored."""
    batch_size: int = Field(default=32, ge=1)
    """Videos encoded at once."""
    text_block: int = Field(default=256, ge=1)
    """Texts scored at once."""
    video_block: int = Field(default=256, ge=1)
    """Videos scored at once."""
    memory_mb: int = Field(default=2048, ge=1)
    """Memory that scoring takes on each worker's device, in MiB, beyond the model and the embeddings where they were
    made. With less, the videos are gone through more often; results are the same."""
    examples: int = Field(default=12, ge=0)
    """Example retrievals shown in the report, hits and misses, per test set."""
    normalisations: bool = False
    """Also score the test sets with every registered normalisation (QB-Norm, dual and inverted softmax), as columns of
    their own that say what they saw. The driver then holds the whole matrix of texts x videos, and the bank's."""
    bank_videos: int = Field(default=0, ge=0)
    """Training videos, drawn evenly from the training sets, that with their captions are QB-Norm's query bank in both
    directions; 0 leaves out the columns that need a bank. Used by normalisations only."""
    leave_out: tuple[str, ...] = ()
    """DOMAIN=FILE: a list of test videos of that domain that were trained on, or nearly. Results are then given with
    and without them."""
    qrels: tuple[str, ...] = ()
    """DOMAIN=FILE: a list of the videos that are relevant to each caption of that test domain, for text-to-video
    figures beside the ordinary ones: TREC's lines `QUERY 0 VIDEO GRADE` or JSON lines with query, doc and rel. A query
    is VIDEO#N, the N-th caption of a video, from 0; see `glscl shards duplicates`."""
    towers_alpha: float | None = Field(default=None, ge=0, le=1)
    """WiSE-FT: test with clip towers that are this much the trained ones and for the rest those that training began
    with (Wortsman et al. 2022). none tests the trained ones. Training and held-out scores are not touched."""
    head_alpha: float | None = Field(default=None, ge=0, le=1)
    """The same for the head and the frame context."""
    frames: tuple[FrameOrder, ...] | None = None
    """Controls: also test with the middle one of each video's frames alone (single), with its frames in an order drawn
    from its id (shuffled), or backwards (reversed), as rows beside the ordinary one; held-out scores stay."""

    @field_validator("frames")
    @classmethod
    def _each_once(cls, frames: tuple[FrameOrder, ...] | None) -> tuple[FrameOrder, ...] | None:
        if frames and len(set(frames)) < len(frames):
            raise ValueError("an order of frames is named twice")
        return frames or None
