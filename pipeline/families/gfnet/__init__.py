"""GFNet: one image, looked at again and again until the answer is sure."""
