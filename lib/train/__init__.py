"""The trainer: one loop for every model, budget, device and number of processes. It never learns a step's name."""
