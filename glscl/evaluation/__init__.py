"""From a checkpoint to exact retrieval numbers: embedding, blockwise scoring, ranks and metrics."""
