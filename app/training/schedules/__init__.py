"""Learning-rate schedules: factor on the peak rate as a function of the step."""
