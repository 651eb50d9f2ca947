"""Command lines: what a training leaves, taken home and measured."""
