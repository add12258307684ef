"""The server of `aios serve`, an OpenAI-compatible HTTP API, and the pages of `aios web`.

`app` is the API as an application and `server` runs it; `pages` is the site, and `manager` runs
both at one address. ``python -m aios.web`` and ``python -m aios.web.manager`` are the programs that
the command line hands a resolved config to. Needs the extra ``web`` (fastapi, uvicorn,
prometheus-client). Imports `aios.app` and what is below it, never `aios.cli`.
"""
