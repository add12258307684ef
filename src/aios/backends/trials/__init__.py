"""Many temporary adapters, trained and scored at once: the trial engine."""
