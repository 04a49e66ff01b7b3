"""Training losses: functions of tensors only."""
