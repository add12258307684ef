"""Passages in and self-edits out: readers, writers, sentence and data splits, probes."""
