"""The wire format: how a lumisection, a run start and a run stop become a message, and back.

A message's key is the run number in ASCII, so that the messages of a run stay in order in one partition. Its header
`crc32c` is the CRC32C of the value, since FlatBuffers do not notice damage. Its value is in one of the formats of
`decoding.FORMATS`. A message may come from anybody: decoding checks everything that the value claims.
"""

from dqmstream.streaming.wire.decoding import check_decoders, decode
from dqmstream.streaming.wire.encoding import encode
from dqmstream.streaming.wire.envelope import checksum
from dqmstream.streaming.wire.undecodable import Undecodable

__all__ = ["Undecodable", "check_decoders", "checksum", "decode", "encode"]
