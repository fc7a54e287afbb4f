"""Toy domains: real h264 files of moving shapes, drawn from a seed, for quickstarts and tests.

``toy_clips`` is MSR-VTT-like (about two seconds, several captions per video), ``toy_stories`` is ActivityNet-like
(six to eight seconds, several events in order, one paragraph, textured grounds, other wording). The two share shapes,
colours and part of their words, so that a model trained on one can be tested on the other. ``toy_stills`` is the web's
captioned pictures: towers pretrained on it know what a frame shows and not what moves, as CLIP's do. The factorial
domains (``toy_short_plain_one`` and its kin, see `glscl.data.toy.factorial`) differ in one factor at a time.
"""

from glscl.data.toy.domains import TOY_SPLITS, toy_capacity, toy_names, toy_records
from glscl.data.toy.render import event_times, render_video, write_toy

__all__ = ["TOY_SPLITS", "event_times", "render_video", "toy_capacity", "toy_names", "toy_records", "write_toy"]
