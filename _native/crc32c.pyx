# The checksum of the spool's frames.

cdef extern from "crc32c.h" nogil:
    void crc32c_init()
    uint32_t c_crc32c "crc32c"(uint32_t seed, const uint8_t *p, size_t n, int instruction)

cdef enum:
    CRC_NOGIL_BYTES = 4096      # less takes no longer than letting go of the GIL


def crc32c(data, uint32_t seed=0, *, bint instruction=True):
    """The CRC-32C of the bytes that ``seed`` is the checksum of, followed by ``data``."""
    cdef Py_buffer view
    cdef uint32_t crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len > CRC_NOGIL_BYTES:
            with nogil:
                crc = c_crc32c(seed, <const uint8_t *> view.buf, view.len, instruction)
        else:
            crc = c_crc32c(seed, <const uint8_t *> view.buf, view.len, instruction)
    finally:
        PyBuffer_Release(&view)
    return crc


crc32c_init()
