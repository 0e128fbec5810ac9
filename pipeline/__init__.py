"""What moves: processes, queues, time, failure and their measurement.

Here is also what libraries read from the environment when they are loaded: this file is imported before any of them,
in the driver and in every worker. A value that the user has set is kept.
"""

import os

# torch then takes memory for large maps in huge pages. The network that glances is 3 % faster by it, and a fifth at 16
# views a pass, whose maps are fresh pages each time (AVX-512 CPU, bfloat16).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Ray reports its use to its makers otherwise.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers niceness 15, which on a machine that does anything else starves them.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray leaves the GPUs that an actor sees alone where it asks for none; unless that is said, some versions warn of it.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray would report every answer that nobody waits for any more, in colours, between our lines of progress.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")


def wait_passively() -> None:
    """Has torch's threads sleep while they wait for each other; to be called before torch is loaded, for cameras only.

    Cameras' readers need the cores that these threads would burn: 8 cameras on 2 busy cores, small networks, had a p95
    of 2800 ms and have 145 ms. Other runs keep torch's own way. Workers on this machine have the driver's environment.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
