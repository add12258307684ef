"""Conversations with experts: `assistant` is what chat and server talk to."""
