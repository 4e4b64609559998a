"""From pixels to answers, and what answers are worth: engines, views; metrics, significance.

No training, no files: a network and batches come in, logits and figures go out.
"""
