"""What trainings, masks and whole searches cost: steps, FLOPs, time, memory and energy."""
