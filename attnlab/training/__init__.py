"""The loop, the schedule, checkpoints and the run folder.

What a user can fix, such as a damaged file or a wrong setting, raises a `UserError` with a one-line message.
"""
