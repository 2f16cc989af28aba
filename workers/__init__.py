"""Does the work: publishes what is due, claims it, runs it, and takes back what was lost."""
