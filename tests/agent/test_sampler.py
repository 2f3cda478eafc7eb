"""One look at the machine."""

from metta.sweep.agent.sampler import network_bytes

TABLE = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo: 9999999     100    0    0    0     0          0         0  9999999     100    0    0    0     0       0
  eth0: 1000          5    0    0    0     0          0         0      300       4    0    0    0     0       0
 wlan0:20             1    0    0    0     0          0         0        3       1    0    0    0     0       0
"""


def test_the_loopback_is_no_network() -> None:
    assert network_bytes(TABLE) == 1323
