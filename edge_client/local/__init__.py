"""What the device shows to those beside it: status, predictions, and what is wrong."""
