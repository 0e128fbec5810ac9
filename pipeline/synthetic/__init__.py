"""The synthetic archive: scenes drawn with their ground truth, and real H.264 files made of them."""
