"""Count and measure the costs of trainings, masks and whole searches: steps, FLOPs, time, memory and energy."""
