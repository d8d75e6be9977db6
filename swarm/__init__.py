"""The rules: functions of a view, and machines. Nothing here waits."""
