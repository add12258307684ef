"""Texts under different adapters, written in one batch for many at once."""
