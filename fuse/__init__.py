"""The mount: file-system operations onto client calls, nothing else."""
