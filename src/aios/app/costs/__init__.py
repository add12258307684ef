"""What A/B tests and trainings of experts cost: measured in runs, told before the next one."""
