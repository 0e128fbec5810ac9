"""AdaFocus: every frame is a step, with a place of its own in it; a recurrent classifier reads the steps in order."""
