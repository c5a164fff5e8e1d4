"""The commands of the command line, one module each: ``run(options)`` returns the exit code."""
