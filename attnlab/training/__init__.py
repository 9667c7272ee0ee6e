"""The loop, the schedule, checkpoints and the run folder."""
