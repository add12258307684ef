"""Run directories as they are listed, followed, compared and watched."""
