# cython: language_level=3, freethreading_compatible=False
"""gateway._native: bytes to columns to blocks. This file is the contents page.

    buffer.h dictionary.h column.h       the data structures: growable, bounded, taken back by truncation
    text.h number.h time.h cityhash.h    leaf kernels: UTF-8, JSON strings, numbers, timestamps, checksum
    columns.pyx                          Columns: an open block; Native blocks and their compressed framing
    decoded.pyx                          Decoded: the counts of one request; how failures become errors
    cursor.pyx                           the protobuf reader that checks its own bounds
    otlp_values.pyx                      AnyValue -> text
    otlp_protobuf.pyx                    ExportLogsServiceRequest -> rows
    genai.pyx                            which records are GenAI events, and their row
    json.pyx                             the JSON tokenizer
    otlp_json.pyx                        OTLP/JSON -> OTLP protobuf, which the above turns into rows
    entry_plan.pyx                       which member of a flat JSON entry feeds which column
    entry_rules.pyx                      an entry -> a row
    entries.pyx                          a request of entries: array, object, member, lines -> rows
    crc32c.h crc32c.pyx                  the checksum of the spool's frames
    mentions.pyx                         whether a body mentions a text
    bucket.pyx                           the token bucket
    key_cells.pyx                        who has which idempotency key

Inner functions are noexcept nogil and return a status; only what Python calls raises.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, SIZE_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

import os

from lz4 import block as lz4_block

from gateway.errors import Invalid, Malformed, Problem, TooLarge
from gateway.schema import SOURCES as _SOURCES

include "headers.pyx"
include "columns.pyx"
include "decoded.pyx"
include "cursor.pyx"
include "otlp_values.pyx"
include "otlp_protobuf.pyx"
include "genai.pyx"
include "json.pyx"
include "otlp_json.pyx"
include "entry_plan.pyx"
include "entry_rules.pyx"
include "entries.pyx"
include "crc32c.pyx"
include "mentions.pyx"
include "bucket.pyx"
include "key_cells.pyx"

seed_dictionaries(int.from_bytes(os.urandom(8), "little"))
number_init()
