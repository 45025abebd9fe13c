"""Secateur makes convolutional networks smaller by removing whole channels, exactly."""
