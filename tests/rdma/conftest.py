"""What is in guest/ runs inside the virtual machine only: test_machine.py boots it."""

import os

collect_ignore_glob = [] if os.environ.get("WIRE_TEST_RDMA") else ["guest/*"]
