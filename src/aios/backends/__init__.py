"""Implementations of the seams in `aios.core.protocols`; the only importers of torch."""
