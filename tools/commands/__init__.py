"""The commands of the command line, one module each: ``run(options)`` returns the exit code."""

import onnxruntime

# What ONNX Runtime thinks of a model's style is not for the user of a command, and its errors are exceptions as well.
onnxruntime.set_default_logger_severity(4)
