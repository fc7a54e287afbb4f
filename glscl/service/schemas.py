"""What the API takes and gives."""

from __future__ import annotations

from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Value: TypeAlias = str | bool | int | float


class TextSearch(BaseModel):
    """A search by text."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(min_length=1, description="What happens in the video.", examples=["a dog catches a frisbee"])
    index: str | None = Field(None, description="Name of the index; the first one if it is left out.")
    k: int = Field(10, ge=1, description="Number of results.")
    where: list[str] = Field([], description="Conditions on metadata, all of which hold: `lang=en`, `year>2020`.")


class Video(BaseModel):
    """A video of an index."""

    id: str
    duration: float = Field(description="Seconds.")
    captions: list[str]
    metadata: dict[str, Value]
    media: str = Field(description="Where its file is, relative to this server; takes HTTP ranges.")


class Result(Video):
    """A video that was found, and the moment in it."""

    score: float = Field(description="The head's exact similarity, before the logit scale.")
    start: float = Field(description="First second of the moment.")
    end: float = Field(description="Last second of the moment.")
    segment: tuple[float, float] = Field(description="Seconds of the segment that was scored.")
    times: list[float] = Field(description="The second of each frame of the segment.")
    weights: list[float] = Field(description="What the query attended to: one weight per frame, sum 1; may be empty.")
    concepts: list[float] = Field(description="Similarity of each concept of GLSCL; empty of other heads.")


class Results(BaseModel):
    """Answer to a search: videos, best first."""

    index: str
    seconds: float = Field(description="Time that the answer took.")
    results: list[Result]


class Text(BaseModel):
    """A caption that was found."""

    text: str
    score: float
    id: str | None = Field(description="The video whose caption it is.")


class Texts(BaseModel):
    """Captions of the library that describe a video, best first."""

    index: str
    seconds: float
    results: list[Text]


class Index(BaseModel):
    """An index, and the model that answers."""

    name: str
    videos: int
    segments: int
    partitions: int
    head: str
    towers: str
    run: str
    step: int
    train_domains: list[str] = Field(description="Domains that the model was trained on.")
    metadata: dict[str, list[Value]] = Field(description="Keys that `where` takes, with some of their values.")
    examples: list[str] = Field(description="Some captions of the library.")


class Indexes(BaseModel):
    """The indexes that are served, and the limits of the server."""

    indexes: list[Index]
    max_results: int
    max_characters: int
    max_upload_bytes: int
    max_upload_seconds: float


class Videos(BaseModel):
    """Some videos of an index, in its order."""

    index: str
    total: int
    videos: list[Video]


class Health(BaseModel):
    """Whether the server lives, or can answer."""

    status: str
