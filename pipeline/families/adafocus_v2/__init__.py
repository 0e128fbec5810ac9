"""AdaFocusV2: every frame has a place of its own between pixels, and a maximum over the frames so far is classified."""
