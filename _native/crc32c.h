/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78; RFC 3720, appendix B.4), by the processor's instruction where
 * it has one, else by eight tables. Both read little-endian words. */
#ifndef WEIR_CRC32C_H
#define WEIR_CRC32C_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

/* crc32c_tables[k][b]: what the byte b does to the remainder, k bytes before the end of a word. */
static uint32_t crc32c_tables[8][256];
static int crc32c_has_instruction;

static inline void crc32c_init(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t remainder = byte;
        for (int bit = 0; bit < 8; bit++)
            remainder = remainder >> 1 ^ (remainder & 1 ? UINT32_C(0x82F63B78) : 0);
        crc32c_tables[0][byte] = remainder;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = crc32c_tables[k - 1][byte];
            crc32c_tables[k][byte] = before >> 8 ^ crc32c_tables[0][before & 0xFF];
        }
#if defined(__x86_64__) && defined(__GNUC__)
    crc32c_has_instruction = __builtin_cpu_supports("sse4.2") != 0;
#elif defined(__ARM_FEATURE_CRC32)
    crc32c_has_instruction = 1;
#endif
}

static inline uint32_t crc32c_by_tables(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= crc32c_tables[7 - k][word >> 8 * k & 0xFF];
    }
    for (; n > 0; n--, p++)
        crc = crc >> 8 ^ crc32c_tables[0][(crc ^ *p) & 0xFF];
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t wide = crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    for (; n > 0; n--, p++)
        crc = _mm_crc32_u8(crc, *p);
    return crc;
}
#elif defined(__ARM_FEATURE_CRC32)
static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        crc = __crc32cd(crc, word);
    }
    for (; n > 0; n--, p++)
        crc = __crc32cb(crc, *p);
    return crc;
}
#else
#define crc32c_by_instruction crc32c_by_tables
#endif

/* The checksum of what `seed` is the checksum of, followed by p..p+n. crc32c_init comes first. */
static inline uint32_t crc32c(uint32_t seed, const uint8_t *p, size_t n, int instruction) {
    if (instruction && crc32c_has_instruction)
        return ~crc32c_by_instruction(~seed, p, n);
    return ~crc32c_by_tables(~seed, p, n);
}

#endif
