"""Talking to an OpenAI-compatible endpoint: requests, answers, pacing."""
