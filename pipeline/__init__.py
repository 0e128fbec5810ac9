"""What moves: processes, queues, time, failure and their measurement."""

import os

# torch reads this once, when it is loaded, and then takes memory for large maps in huge pages. The network that glances
# is 3 % faster by it, and a fifth at 16 views a pass, whose maps are fresh pages each time (AVX-512 CPU, bfloat16).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
