"""From pixels to logits, and how good they are: engines, views; metrics, significance.

No training, no files: functions here take a network and batches, and return logits and figures.
"""
