"""Nothing about models: errors, seeds, atomic files, progress, hashing, configuration, devices, safe unpickling."""
