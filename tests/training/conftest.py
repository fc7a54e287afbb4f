"""What the processes that these tests start have in common."""

from __future__ import annotations

import multiprocessing
import os

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks for one when it is imported
multiprocessing.set_forkserver_preload(  # imports once, for all processes; the last two are what DeepSpeed adds later
    ["glscl.training.launch", "deepspeed", "torch.utils.cpp_extension", "torch._dynamo"]
)
