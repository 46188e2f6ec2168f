"""Count the copies of tied weights in files, optimized graphs and memory."""
