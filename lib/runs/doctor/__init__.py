"""Tell what this machine can do, what a job would need, and what is missing."""
