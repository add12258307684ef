"""Experiment trackers: the figures of a run in other programs as well."""
