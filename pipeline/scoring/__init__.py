"""What labels are worth: accuracy and mAP against a truth, comparisons, calibration, plots."""
