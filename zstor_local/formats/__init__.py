"""Formats of others, as pure functions: protobuf, content ids, CAR files, remote logs. Bytes in, values out; no files, no clock."""
