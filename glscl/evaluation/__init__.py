"""Evaluation: embeds test sets with a trained model, scores them block by block, and measures exact ranks."""
