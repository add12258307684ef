"""A/B experiments: the job, how it stands, what it found, and its report."""
