"""The program that runs on the device: times models in fresh processes, told by JSON lines.

It travels as one file, a zip application (``search.devices.archive``), to where Python, numpy and
an inference runtime are all that it finds: nothing here imports from ``search`` beyond this folder.
``supervisor.py`` is its main process, ``child.py`` begins the processes that hold one model each,
``drivers/`` has a file for every runtime.

The supervisor reads one request a line and answers each with one line, ``{"ok": true, ...}`` or
``{"ok": false, "error": "one line", "kind": "name"}``, until its input ends. With ``--own-group``
it leads a process group, whose number is its ``pid``.

=========== ============================================== =======================================
request     fields                                         reply
=========== ============================================== =======================================
hello                                                      schema pid
describe                                                   arch cpu flags cpus usable_cores python
                                                           numpy onnxruntime
conditions                                                 cpu arch flags cpus stolen_ticks
                                                           throttled_us (both since the start)
lock        wait_s hold_s                                  held holder
start       roles                                          starts fresh processes; does not wait
open        role model inputs batch_size threads           cold_start_ms run_ms warm clock
            session_entries memory_limit_bytes seed        options onnxruntime model_sha256
                                                           baseline_rss_bytes
single      role count limit_ms                            times_ms cpu_ms energy peak_rss_bytes
throughput  role batch_size limit_ms most_ms               images_per_s
rounds      count limit_ms block_ms seed                   rounds [[candidate_ms, reference_ms]]
                                                           disturbed [whether the round was]
                                                           clock pieces runs [of a piece] order
operators   role                                           operators {type: executed kernels}
profile     role runs                                      kernels [of one run: name operator
                                                           provider microseconds inputs outputs]
predict     role model threads session_entries inputs      classes [of every image] onnxruntime
            first count batch_size
close                                                      ends the children
=========== ============================================== =======================================
"""
