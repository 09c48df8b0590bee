/* A growable byte buffer. Every function that appends returns 0, or -1 when memory is out. */
#ifndef WEIR_BUFFER_H
#define WEIR_BUFFER_H
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t *data;
    size_t size;
    size_t capacity;
} buffer_t;

/* Makes room for `extra` more bytes behind `size`. */
static inline int buffer_reserve(buffer_t *buffer, size_t extra) {
    size_t needed = buffer->size + extra;
    if (__builtin_expect(needed <= buffer->capacity, 1))
        return 0;
    if (needed < extra)
        return -1;
    size_t capacity = buffer->capacity + buffer->capacity / 2 + 64;
    if (capacity < needed)
        capacity = needed;
    uint8_t *data = (uint8_t *)realloc(buffer->data, capacity);
    if (data == NULL)
        return -1;
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

static inline int buffer_append(buffer_t *buffer, const void *data, size_t size) {
    if (buffer_reserve(buffer, size) < 0)
        return -1;
    if (size)
        memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return 0;
}

static inline int buffer_append_byte(buffer_t *buffer, uint8_t byte) {
    if (buffer_reserve(buffer, 1) < 0)
        return -1;
    buffer->data[buffer->size++] = byte;
    return 0;
}

/* LEB128, as protobuf and ClickHouse write lengths; at most ten bytes. */
static inline int buffer_append_varint(buffer_t *buffer, uint64_t value) {
    if (buffer_reserve(buffer, 10) < 0)
        return -1;
    while (value >= 0x80) {
        buffer->data[buffer->size++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    buffer->data[buffer->size++] = (uint8_t)value;
    return 0;
}

static inline void buffer_free(buffer_t *buffer) {
    free(buffer->data);
    buffer->data = NULL;
    buffer->size = buffer->capacity = 0;
}
#endif
