"""Two generators on the same passages, as a job."""
