"""One file per inference runtime: opening a model, running it, and its own profile of that.

A driver has ``version()``, ``Model``, ``profile(path, options, batches)``,
``count_kernels(events)`` and ``typical_kernels(events, runs)``; ``onnxruntime.py`` says what each
does.
"""
