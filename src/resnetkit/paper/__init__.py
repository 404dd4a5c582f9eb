"""The experiments of "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), to be run and looked at."""
