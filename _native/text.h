/* Text as the rows keep it: UTF-8 made valid, JSON strings, base64, hex, level words. */
#ifndef WEIR_TEXT_H
#define WEIR_TEXT_H
#include "buffer.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* ---- UTF-8 ---- */

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "text.h reads its words little-endian"
#endif

static inline uint32_t text_load32(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t text_load64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* Any bit set: not ASCII. At most 16 bytes; the words overlap in the middle. */
static inline uint64_t short_high_bits(const uint8_t *p, size_t n) {
    if (n >= 8)
        return (text_load64(p) | text_load64(p + n - 8)) & UINT64_C(0x8080808080808080);
    if (n >= 4)
        return (text_load32(p) | text_load32(p + n - 4)) & 0x80808080;
    return n == 0 ? 0 : (p[0] | p[n / 2] | p[n - 1]) & 0x80;
}

/* How many bytes at the front of p..p+n are ASCII. */
static inline size_t ascii_prefix(const uint8_t *p, size_t n) {
    size_t at = 0;
#if defined(__SSE2__)
    for (; n - at >= 16; at += 16) {
        int high = _mm_movemask_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + at)));
        if (high)
            return at + (size_t)__builtin_ctz((unsigned)high);
    }
#endif
    for (; n - at > 16; at += 8)
        if (text_load64(p + at) & UINT64_C(0x8080808080808080))
            break;
    if (n - at <= 16 && short_high_bits(p + at, n - at) == 0)
        return n;
    while (at < n && p[at] < 0x80)
        at++;
    return at;
}

/* Looks at the sequence that starts at p (n > 0). Well-formed: its length, 1 to 4. Otherwise minus the length of
 * its maximal ill-formed part, 1 to 3 (Unicode, 3.9, table 3-7). */
static inline int utf8_sequence(const uint8_t *p, size_t n) {
    uint8_t lead = p[0], low = 0x80, high = 0xBF;
    int length;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return -1;
    if (lead < 0xE0) {
        length = 2;
    } else if (lead < 0xF0) {
        length = 3;
        if (lead == 0xE0)
            low = 0xA0;
        else if (lead == 0xED)
            high = 0x9F;
    } else {
        length = 4;
        if (lead == 0xF0)
            low = 0x90;
        else if (lead == 0xF4)
            high = 0x8F;
    }
    if (n < 2 || p[1] < low || p[1] > high)
        return -1;
    for (int i = 2; i < length; i++)
        if ((size_t)i >= n || (p[i] & 0xC0) != 0x80)
            return -i;
    return length;
}

/* How many bytes at the front of p..p+n are whole, well-formed sequences of two to four bytes. */
static inline size_t utf8_wide_prefix(const uint8_t *p, size_t n) {
    size_t at = 0;
    while (n - at >= 4) { /* The common two and three bytes by one load. */
        uint32_t word = text_load32(p + at);
        if ((word & 0xC0E0) == 0x80C0 && (word & 0x1E) != 0) {
            at += 2;
            continue;
        }
        uint32_t range = word & 0x200F; /* E0 must have this bit of its second byte, ED must not */
        if ((word & 0xC0C0F0) == 0x8080E0 && range != 0 && range != 0x200D) {
            at += 3;
            continue;
        }
        int length = utf8_sequence(p + at, n - at);
        if (length < 2)
            return at;
        at += (size_t)length;
    }
    while (at < n) {
        int length = utf8_sequence(p + at, n - at);
        if (length < 2)
            break;
        at += (size_t)length;
    }
    return at;
}

/* The length of the longest well-formed front of p..p+n. */
static inline size_t utf8_valid_prefix(const uint8_t *p, size_t n) {
    size_t at = ascii_prefix(p, n);
    while (at < n) {
        size_t wide = utf8_wide_prefix(p + at, n - at);
        if (wide == 0)
            break;
        at += wide;
        at += ascii_prefix(p + at, n - at);
    }
    return at;
}

static inline int utf8_is_valid(const uint8_t *p, size_t n) {
    return utf8_valid_prefix(p, n) == n;
}

/* Appends p..p+n, each maximal ill-formed part as one U+FFFD. 0, or -1 when memory is out. */
static inline int buffer_append_text(buffer_t *out, const uint8_t *p, size_t n) {
    for (;;) {
        size_t valid = utf8_valid_prefix(p, n);
        if (buffer_append(out, p, valid) < 0)
            return -1;
        if (valid == n)
            return 0;
        p += valid;
        n -= valid;
        if (buffer_append(out, "\xEF\xBF\xBD", 3) < 0)
            return -1;
        size_t bad = (size_t)-utf8_sequence(p, n);
        p += bad;
        n -= bad;
    }
}

/* The largest cut of valid UTF-8 at a character's edge that is not above `max`. */
static inline size_t utf8_floor(const uint8_t *p, size_t n, size_t max) {
    if (n <= max)
        return n;
    while (max > 0 && (p[max] & 0xC0) == 0x80)
        max--;
    return max;
}

/* ---- JSON strings ---- */

/* For each byte of a word that is a quote, a backslash or a control character its highest bit; above the lowest
 * such byte other bits may be set too. */
static inline uint64_t json_stops(uint64_t word) {
    const uint64_t ones = UINT64_C(0x0101010101010101), highs = ones * 0x80;
    uint64_t quotes = word ^ ones * '"', backslashes = word ^ ones * '\\';
    uint64_t stops = (word - ones * 0x20) & ~word;
    stops |= (quotes - ones) & ~quotes;
    stops |= (backslashes - ones) & ~backslashes;
    return stops & highs;
}

/* The index of the first byte that is a quote, a backslash or a control character; n if there is none. */
static inline size_t scan_json_string(const uint8_t *p, size_t n) {
    size_t at = 0;
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1F);
    for (; n - at >= 16; at += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(p + at));
        __m128i hits = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash));
        hits = _mm_or_si128(hits, _mm_cmpeq_epi8(_mm_min_epu8(bytes, control), bytes));
        int mask = _mm_movemask_epi8(hits);
        if (mask)
            return at + (size_t)__builtin_ctz((unsigned)mask);
    }
#endif
    for (; n - at >= 8; at += 8) {
        uint64_t stops = json_stops(text_load64(p + at));
        if (stops)
            return at + (size_t)__builtin_ctzll(stops) / 8;
    }
    while (at < n && p[at] != '"' && p[at] != '\\' && p[at] >= 0x20)
        at++;
    return at;
}

static inline int append_json_escape(buffer_t *out, uint8_t byte) {
    static const char digits[] = "0123456789abcdef";
    uint8_t escape[6] = {'\\', byte, '0', '0', (uint8_t)digits[byte >> 4 & 15], (uint8_t)digits[byte & 15]};
    switch (byte) {
    case '"':
    case '\\': break;
    case '\n': escape[1] = 'n'; break;
    case '\r': escape[1] = 'r'; break;
    case '\t': escape[1] = 't'; break;
    case '\b': escape[1] = 'b'; break;
    case '\f': escape[1] = 'f'; break;
    default: escape[1] = 'u'; return buffer_append(out, escape, 6);
    }
    return buffer_append(out, escape, 2);
}

/* Appends p..p+n, repaired, as a JSON string in its quotes. 0, or -1 when memory is out. */
static inline int buffer_append_json_string(buffer_t *out, const uint8_t *p, size_t n) {
    if (buffer_append_byte(out, '"') < 0)
        return -1;
    for (;;) {
        size_t plain = scan_json_string(p, n);
        if (buffer_append_text(out, p, plain) < 0)
            return -1;
        if (plain == n)
            return buffer_append_byte(out, '"');
        if (append_json_escape(out, p[plain]) < 0)
            return -1;
        p += plain + 1;
        n -= plain + 1;
    }
}

/* ---- Hex ---- */

/* One more than the value of a hex digit in any case; 0 for any other byte. */
static const uint8_t hex_values[256] = {
    ['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
    ['A'] = 11, ['B'] = 12, ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16,
};

/* Writes 2 * n lower-case digits. */
static inline void hex_encode(const uint8_t *p, size_t n, uint8_t *out) {
    static const char digits[] = "0123456789abcdef";
    for (; n >= 4; n -= 4, p += 4, out += 8) { /* Four bytes become eight halves, the upper one first, in one word. */
        uint64_t halves = text_load32(p);
        halves = (halves | halves << 16) & UINT64_C(0x0000FFFF0000FFFF);
        halves = (halves | halves << 8) & UINT64_C(0x00FF00FF00FF00FF);
        halves = (halves >> 4 | halves << 8) & UINT64_C(0x0F0F0F0F0F0F0F0F);
        uint64_t letters = (halves + UINT64_C(0x0606060606060606)) >> 4 & UINT64_C(0x0101010101010101);
        halves += UINT64_C(0x3030303030303030) + letters * ('a' - '9' - 1);
        memcpy(out, &halves, sizeof halves);
    }
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = (uint8_t)digits[p[i] >> 4];
        out[2 * i + 1] = (uint8_t)digits[p[i] & 15];
    }
}

/* Writes n / 2 bytes; 0, or -1 when n is odd or a digit is none. */
static inline int hex_decode(const uint8_t *p, size_t n, uint8_t *out) {
    if (n % 2)
        return -1;
    uint32_t wrong = 0; /* grows a bit above the lowest four at the first byte that is no digit */
    for (size_t i = 0; i < n; i += 2) {
        uint32_t high = hex_values[p[i]] - 1U, low = hex_values[p[i + 1]] - 1U;
        wrong |= high | low;
        out[i / 2] = (uint8_t)(high << 4 | low);
    }
    return wrong > 15 ? -1 : 0;
}

/* ---- JSON escapes ---- */

/* The UTF-16 unit of a backslash, a `u` and four hex digits at p, or -1. */
static inline int32_t json_unicode_unit(const uint8_t *p, size_t n) {
    if (n < 6 || p[0] != '\\' || p[1] != 'u')
        return -1;
    uint32_t unit = 0, wrong = 0;
    for (int i = 2; i < 6; i++) {
        uint32_t value = hex_values[p[i]] - 1U;
        wrong |= value;
        unit = unit << 4 | (value & 15);
    }
    return wrong > 15 ? -1 : (int32_t)unit;
}

/* Writes a code point below U+110000 as UTF-8; returns its length, 1 to 4. */
static inline int utf8_encode(uint32_t point, uint8_t *out) {
    if (point < 0x80) {
        out[0] = (uint8_t)point;
        return 1;
    }
    int length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    static const uint8_t leads[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int i = length - 1; i > 0; i--) {
        out[i] = (uint8_t)(0x80 | (point & 0x3F));
        point >>= 6;
    }
    out[0] = (uint8_t)(leads[length] | point);
    return length;
}

/* Decodes the escape at p (a backslash) to at most four bytes; returns how many bytes of p it took, 0 when it is
 * none. */
static inline size_t json_escape(const uint8_t *p, size_t n, uint8_t *out, int *length) {
    if (n < 2)
        return 0;
    *length = 1;
    switch (p[1]) {
    case '"':
    case '\\':
    case '/': out[0] = p[1]; return 2;
    case 'n': out[0] = '\n'; return 2;
    case 't': out[0] = '\t'; return 2;
    case 'r': out[0] = '\r'; return 2;
    case 'b': out[0] = '\b'; return 2;
    case 'f': out[0] = '\f'; return 2;
    default: break;
    }
    int32_t unit = json_unicode_unit(p, n);
    if (unit < 0)
        return 0;
    size_t taken = 6;
    uint32_t point = (uint32_t)unit;
    if (point >= 0xD800 && point <= 0xDFFF) {
        int32_t next = point < 0xDC00 ? json_unicode_unit(p + 6, n - 6) : -1;
        if (next >= 0xDC00 && next <= 0xDFFF) {
            point = 0x10000 + ((point - 0xD800) << 10) + ((uint32_t)next - 0xDC00);
            taken = 12;
        } else {
            point = 0xFFFD;
        }
    }
    *length = utf8_encode(point, out);
    return taken;
}

/* Appends what the inside of a JSON string (no quotes around it, no raw control characters) stands for, repaired;
 * lone surrogates become U+FFFD. 0; -1 when memory is out; -2 at an escape JSON does not have: *bad is where its
 * backslash is, and `out` holds what came before it. */
static inline int json_unescape(const uint8_t *p, size_t n, buffer_t *out, size_t *bad) {
    size_t at = 0;
    for (;;) {
        const uint8_t *backslash = n > at ? (const uint8_t *)memchr(p + at, '\\', n - at) : NULL;
        size_t end = backslash ? (size_t)(backslash - p) : n;
        if (buffer_append_text(out, p + at, end - at) < 0)
            return -1;
        if (end == n)
            return 0;
        uint8_t decoded[4];
        int length;
        size_t taken = json_escape(p + end, n - end, decoded, &length);
        if (taken == 0) {
            *bad = end;
            return -2;
        }
        if (buffer_append(out, decoded, (size_t)length) < 0)
            return -1;
        at = end + taken;
    }
}

/* ---- Base64 ---- */

/* Appends the standard alphabet, padded. 0, or -1 when memory is out. */
static inline int buffer_append_base64(buffer_t *out, const uint8_t *p, size_t n) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (n > SIZE_MAX / 2 || buffer_reserve(out, (n + 2) / 3 * 4) < 0)
        return -1;
    uint8_t *to = out->data + out->size;
    for (; n >= 3; n -= 3, p += 3, to += 4) {
        uint32_t bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
        to[0] = (uint8_t)alphabet[bits >> 18];
        to[1] = (uint8_t)alphabet[bits >> 12 & 63];
        to[2] = (uint8_t)alphabet[bits >> 6 & 63];
        to[3] = (uint8_t)alphabet[bits & 63];
    }
    if (n > 0) {
        uint32_t bits = (uint32_t)p[0] << 16 | (n == 2 ? (uint32_t)p[1] << 8 : 0);
        to[0] = (uint8_t)alphabet[bits >> 18];
        to[1] = (uint8_t)alphabet[bits >> 12 & 63];
        to[2] = n == 2 ? (uint8_t)alphabet[bits >> 6 & 63] : '=';
        to[3] = '=';
        to += 4;
    }
    out->size = (size_t)(to - out->data);
    return 0;
}

/* One more than the six bits of a digit of either alphabet; 0 for any other byte. */
static const uint8_t base64_values[256] = {
    ['A'] = 1, ['B'] = 2, ['C'] = 3, ['D'] = 4, ['E'] = 5, ['F'] = 6, ['G'] = 7, ['H'] = 8, ['I'] = 9,
    ['J'] = 10, ['K'] = 11, ['L'] = 12, ['M'] = 13, ['N'] = 14, ['O'] = 15, ['P'] = 16, ['Q'] = 17, ['R'] = 18,
    ['S'] = 19, ['T'] = 20, ['U'] = 21, ['V'] = 22, ['W'] = 23, ['X'] = 24, ['Y'] = 25, ['Z'] = 26,
    ['a'] = 27, ['b'] = 28, ['c'] = 29, ['d'] = 30, ['e'] = 31, ['f'] = 32, ['g'] = 33, ['h'] = 34, ['i'] = 35,
    ['j'] = 36, ['k'] = 37, ['l'] = 38, ['m'] = 39, ['n'] = 40, ['o'] = 41, ['p'] = 42, ['q'] = 43, ['r'] = 44,
    ['s'] = 45, ['t'] = 46, ['u'] = 47, ['v'] = 48, ['w'] = 49, ['x'] = 50, ['y'] = 51, ['z'] = 52,
    ['0'] = 53, ['1'] = 54, ['2'] = 55, ['3'] = 56, ['4'] = 57,
    ['5'] = 58, ['6'] = 59, ['7'] = 60, ['8'] = 61, ['9'] = 62,
    ['+'] = 63, ['-'] = 63, ['/'] = 64, ['_'] = 64,
};

/* Decodes either alphabet, even mixed, padded to a multiple of four or not at all; `out` has room for n bytes.
 * Returns the number of bytes, or -1 when p..p+n is not base64. Bits left over at the end are ignored. */
static inline ssize_t base64_decode(const uint8_t *p, size_t n, uint8_t *out) {
    if (n > 0 && n % 4 == 0 && p[n - 1] == '=')
        n -= p[n - 2] == '=' ? 2 : 1;
    if (n % 4 == 1)
        return -1;
    uint8_t *to = out;
    uint32_t wrong = 0; /* grows a bit above the lowest six at the first byte that is no digit */
    for (; n > 0; p += 4) {
        size_t taken = n < 4 ? n : 4;
        uint32_t values[4] = {0};
        for (size_t i = 0; i < taken; i++) {
            values[i] = base64_values[p[i]] - 1U;
            wrong |= values[i];
        }
        uint32_t bits = values[0] << 18 | values[1] << 12 | values[2] << 6 | values[3];
        *to++ = (uint8_t)(bits >> 16);
        if (taken > 2)
            *to++ = (uint8_t)(bits >> 8);
        if (taken > 3)
            *to++ = (uint8_t)bits;
        n -= taken;
    }
    return wrong > 63 ? -1 : (ssize_t)(to - out);
}

/* ---- Levels ---- */

#define LEVEL_IS_HEARTBEAT 0x100

/* The severity number of a level word in any case (docs/rows.md), for `heartbeat` with LEVEL_IS_HEARTBEAT; -1 for
 * any other word. */
static inline int severity_of_level(const uint8_t *p, size_t n) {
    static const struct {
        char word[14];
        uint8_t size;
        uint16_t severity;
    } levels[] = {
        {"info", 4, 9},      {"error", 5, 17},       {"warn", 4, 13},     {"debug", 5, 5},
        {"warning", 7, 13},  {"trace", 5, 1},        {"critical", 8, 21}, {"fatal", 5, 21},
        {"notice", 6, 9},    {"information", 11, 9}, {"err", 3, 17},      {"crit", 4, 21},
        {"alert", 5, 21},    {"emergency", 9, 21},   {"emerg", 5, 21},    {"panic", 5, 21},
        {"heartbeat", 9, 9 | LEVEL_IS_HEARTBEAT},
    };
    char word[12];
    if (n < 3 || n > 11)
        return -1;
    for (size_t i = 0; i < n; i++)
        word[i] = (char)(p[i] >= 'A' && p[i] <= 'Z' ? p[i] | 0x20 : p[i]);
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++)
        if (levels[i].size == n && memcmp(levels[i].word, word, n) == 0)
            return levels[i].severity;
    return -1;
}
#endif
