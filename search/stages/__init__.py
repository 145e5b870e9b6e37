"""What steps do, one file each: ``run(step, artifacts)`` around a function of torch or ONNX."""
