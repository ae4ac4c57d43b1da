"""Power cuts on a real file system: ext4 on a loop device, whose backing file remembers every write and every flush in order.

A daemon works on it for a while, is killed now and then, loses shards and has them replaced; its clients note what they asked for and
when it was answered. Then the power is cut at many places: what was flushed before is on the disk, of the rest an accidental part.
Each time the file system is mounted, the daemon started, and every client's part of the store must be what it was at its last answer,
or what the one call under way then makes of it; and it must stay so, whatever is lost next.

`make powercut` needs root, FUSE and loop devices, so the tests do not run it.
"""
