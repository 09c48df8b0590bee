/* The kernels as plain symbols for test_kernels.py.
 *
 * Every input is copied to where memory that cannot be touched begins or ends, every bounded output ends there: one
 * byte read or written too far ends the process.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <stdlib.h>

static int allocations_left = INT_MAX;

/* Memory that runs out when the test says so. */
static void *limited_realloc(void *old, size_t size) {
    return allocations_left-- > 0 ? realloc(old, size) : NULL;
}
#define realloc limited_realloc

#include "cityhash.h"
#include "number.h"
#include "text.h"
#include "time.h"

#include <sys/mman.h>

#define PAGE ((size_t)4096)
#define ROOM ((size_t)1 << 20)

static uint8_t *fenced_room(void) {
    uint8_t *mapped = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped + PAGE, ROOM, PROT_READ | PROT_WRITE) != 0)
        abort();
    return mapped + PAGE;
}

/* The n bytes at p, by turns at the very end and at the very start of the room. */
static const uint8_t *input(const uint8_t *p, size_t n) {
    static uint8_t *room;
    static unsigned turn;
    if (room == NULL)
        room = fenced_room();
    if (n > ROOM)
        abort();
    uint8_t *place = turn++ % 2 ? room : room + ROOM - n;
    if (n)
        memcpy(place, p, n);
    return place;
}

static uint8_t *output(size_t n) {
    static uint8_t *room;
    if (room == NULL)
        room = fenced_room();
    if (n > ROOM)
        abort();
    return room + ROOM - n;
}

/* Hands over what a kernel left in the buffer; its result when that is an error. */
static ssize_t hand_over(buffer_t *buffer, int result, uint8_t *out) {
    if (result == 0 && buffer->size)
        memcpy(out, buffer->data, buffer->size);
    ssize_t size = (ssize_t)buffer->size;
    buffer_free(buffer);
    return result < 0 ? result : size;
}

void test_limit_allocations(int count) {
    allocations_left = count;
}

/* A kernel with a fault, to show that the fence holds. */
int test_read_one_too_far(const uint8_t *p, size_t n) {
    return ((const volatile uint8_t *)input(p, n))[n];
}

void test_cityhash128(const uint8_t *p, size_t n, uint64_t *out) {
    cityhash128(input(p, n), n, out);
}

ssize_t test_format_double(double value, uint8_t *out) {
    uint8_t *text = output(32);
    int size = format_double(value, text);
    memcpy(out, text, (size_t)size);
    return size;
}

ssize_t test_format_int64(int64_t value, uint8_t *out) {
    uint8_t *text = output(21);
    int size = format_int64(value, text);
    memcpy(out, text, (size_t)size);
    return size;
}

ssize_t test_format_uint64(uint64_t value, uint8_t *out) {
    uint8_t *text = output(20);
    int size = format_uint64(value, text);
    memcpy(out, text, (size_t)size);
    return size;
}

int test_parse_double(const uint8_t *p, size_t n, double *out) {
    return parse_double(input(p, n), n, out);
}

int test_parse_int64(const uint8_t *p, size_t n, int64_t *out) {
    return parse_int64(input(p, n), n, out);
}

int test_parse_uint64(const uint8_t *p, size_t n, uint64_t *out) {
    return parse_uint64(input(p, n), n, out);
}

int test_parse_integral(const uint8_t *p, size_t n, int64_t *out) {
    return parse_integral(input(p, n), n, out);
}

int test_parse_rfc3339(const uint8_t *p, size_t n, int64_t *out) {
    return parse_rfc3339(input(p, n), n, out);
}

int test_parse_epoch_seconds(const uint8_t *p, size_t n, int64_t *out) {
    return parse_epoch_seconds(input(p, n), n, out);
}

int test_utf8_is_valid(const uint8_t *p, size_t n) {
    return utf8_is_valid(input(p, n), n);
}

size_t test_utf8_floor(const uint8_t *p, size_t n, size_t max) {
    return utf8_floor(input(p, n), n, max);
}

size_t test_scan_json_string(const uint8_t *p, size_t n) {
    return scan_json_string(input(p, n), n);
}

int test_severity_of_level(const uint8_t *p, size_t n) {
    return severity_of_level(input(p, n), n);
}

ssize_t test_append_text(const uint8_t *p, size_t n, uint8_t *out) {
    buffer_t buffer = {0};
    return hand_over(&buffer, buffer_append_text(&buffer, input(p, n), n), out);
}

ssize_t test_append_json_string(const uint8_t *p, size_t n, uint8_t *out) {
    buffer_t buffer = {0};
    return hand_over(&buffer, buffer_append_json_string(&buffer, input(p, n), n), out);
}

ssize_t test_append_base64(const uint8_t *p, size_t n, uint8_t *out) {
    buffer_t buffer = {0};
    return hand_over(&buffer, buffer_append_base64(&buffer, input(p, n), n), out);
}

ssize_t test_json_unescape(const uint8_t *p, size_t n, uint8_t *out, size_t *bad) {
    buffer_t buffer = {0};
    return hand_over(&buffer, json_unescape(input(p, n), n, &buffer, bad), out);
}

ssize_t test_base64_decode(const uint8_t *p, size_t n, uint8_t *out) {
    uint8_t *bytes = output(n);
    ssize_t size = base64_decode(input(p, n), n, bytes);
    if (size > 0)
        memcpy(out, bytes, (size_t)size);
    return size;
}

ssize_t test_hex_encode(const uint8_t *p, size_t n, uint8_t *out) {
    uint8_t *digits = output(2 * n);
    hex_encode(input(p, n), n, digits);
    memcpy(out, digits, 2 * n);
    return (ssize_t)(2 * n);
}

ssize_t test_hex_decode(const uint8_t *p, size_t n, uint8_t *out) {
    uint8_t *bytes = output(n / 2);
    if (hex_decode(input(p, n), n, bytes) < 0)
        return -1;
    memcpy(out, bytes, n / 2);
    return (ssize_t)(n / 2);
}
