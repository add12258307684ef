"""The server of `aios serve`: experts behind an OpenAI-compatible HTTP API.

`app` is the application, `server` runs it, and ``python -m aios.web`` is the program that the
command line hands a resolved config to. Needs the extra ``web`` (fastapi, uvicorn,
prometheus-client). Imports `aios.app` and `aios.core`, never `aios.cli`.
"""
