"""What steps do, one file each: ``run(step, shelf)`` around a plain function of torch or ONNX."""
