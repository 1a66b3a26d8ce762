/* CRC32C (Castagnoli), by carry-less multiplication of 64 bytes at a time where the processor has
 * it (AVX-512 with VPCLMULQDQ), else by its crc32 instruction in three streams.
 *
 * A CRC is the message, as a polynomial over GF(2), times x^32 modulo P. Bits are reflected: bit 0
 * of the first byte is the highest power. With both factors in the low halves of 64-bit words, a
 * carry-less product stands for their product times x, and feeding 64 bits to the crc32 instruction
 * with a value of 0 multiplies them by x^32 modulo P. From that follow all constants below, which
 * are powers of x and computed at setup.
 *
 * Source: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (Intel,
 * 2009); P. Cawley, "Faster CRC32-C on x86" (2022).
 */
#include "crc32c.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <string.h>

#define POLYNOMIAL 0x82F63B78u /* reflected */
#define STREAM 1360            /* bytes of each of three streams: they fill a page but for 16 */
#define BASE __attribute__((target("sse4.2,pclmul")))
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,vpclmulqdq,pclmul,sse4.2")))

static int wide;
static uint32_t by_stream, by_page, by_grain;                     /* x^(8n - 33) */
static uint32_t fold_256[2], fold_64[2], fold_16[2];              /* x^(8n + 31), x^(8n - 33) */

/* x^n modulo P, reflected. */
static uint32_t power(unsigned n) {
    uint32_t value = 0x80000000u;
    while (n--)
        value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
    return value;
}

static void fold_constants(uint32_t out[2], unsigned n_bytes) {
    out[0] = power(8 * n_bytes + 31);
    out[1] = power(8 * n_bytes - 33);
}

int crc32c_setup(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul"))
        return 0;
    by_stream = power(8 * STREAM - 33);
    by_page = power(8 * 4096 - 33);
    by_grain = power(8 * 65536 - 33);
    fold_constants(fold_256, 256);
    fold_constants(fold_64, 64);
    fold_constants(fold_16, 16);
    wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("vpclmulqdq");
    return 1;
}

BASE static inline uint32_t multiply(uint32_t value, uint32_t factor) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)value),
                                           _mm_cvtsi32_si128((int)factor), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

BASE uint32_t crc32c_shift_page(uint32_t value) { return multiply(value, by_page); }
BASE uint32_t crc32c_shift_grain(uint32_t value) { return multiply(value, by_grain); }

static inline uint64_t word(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

/* The rest of a message, or all of a short one: 8 bytes an instruction. `crc` is inverted. */
BASE static uint32_t narrow(uint32_t crc, const uint8_t *data, size_t n) {
    uint64_t value = crc;
    for (; n >= 8; data += 8, n -= 8)
        value = _mm_crc32_u64(value, word(data));
    for (; n; n--)
        value = _mm_crc32_u8((uint32_t)value, *data++);
    return (uint32_t)value;
}

/* Three streams at once, since the instruction has a latency of three cycles. */
BASE static uint32_t streams(uint32_t crc, const uint8_t *data, size_t n) {
    for (; n >= 3 * STREAM; data += 3 * STREAM, n -= 3 * STREAM) {
        uint64_t a = crc, b = 0, c = 0;
        for (size_t at = 0; at < STREAM; at += 8) {
            a = _mm_crc32_u64(a, word(data + at));
            b = _mm_crc32_u64(b, word(data + STREAM + at));
            c = _mm_crc32_u64(c, word(data + 2 * STREAM + at));
        }
        crc = multiply(multiply((uint32_t)a, by_stream) ^ (uint32_t)b, by_stream) ^ (uint32_t)c;
    }
    return narrow(crc, data, n);
}

WIDE static inline __m512i fold(__m512i value, __m512i factors, __m512i next) {
    __m512i low = _mm512_clmulepi64_epi128(value, factors, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(value, factors, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* xor of all three */
}

WIDE static inline __m512i factors(const uint32_t by[2]) {
    return _mm512_broadcast_i32x4(_mm_setr_epi32((int)by[0], 0, (int)by[1], 0));
}

/* Four accumulators of 64 bytes, then one, then 16 bytes, which the instruction reduces. */
WIDE static uint32_t folded(uint32_t crc, const uint8_t *data, size_t n) {
    __m512i a = _mm512_loadu_si512(data), b = _mm512_loadu_si512(data + 64);
    __m512i c = _mm512_loadu_si512(data + 128), d = _mm512_loadu_si512(data + 192);
    __m512i by = factors(fold_256);
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (data += 256, n -= 256; n >= 256; data += 256, n -= 256) {
        a = fold(a, by, _mm512_loadu_si512(data));
        b = fold(b, by, _mm512_loadu_si512(data + 64));
        c = fold(c, by, _mm512_loadu_si512(data + 128));
        d = fold(d, by, _mm512_loadu_si512(data + 192));
    }
    by = factors(fold_64);
    a = fold(fold(fold(a, by, b), by, c), by, d);
    for (; n >= 64; data += 64, n -= 64)
        a = fold(a, by, _mm512_loadu_si512(data));
    __m128i last = _mm512_castsi512_si128(a), by_16 = _mm512_castsi512_si128(factors(fold_16));
    __m128i rest[3] = {_mm512_extracti32x4_epi32(a, 1), _mm512_extracti32x4_epi32(a, 2),
                       _mm512_extracti32x4_epi32(a, 3)};
    for (int i = 0; i < 3; i++)
        last = _mm_xor_si128(rest[i], _mm_xor_si128(_mm_clmulepi64_si128(last, by_16, 0x00),
                                                    _mm_clmulepi64_si128(last, by_16, 0x11)));
    uint64_t value = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last));
    value = _mm_crc32_u64(value, (uint64_t)_mm_extract_epi64(last, 1));
    return narrow((uint32_t)value, data, n);
}

uint32_t crc32c_in_streams(uint32_t value, const uint8_t *data, size_t n) {
    return ~streams(~value, data, n);
}

uint32_t crc32c(uint32_t value, const uint8_t *data, size_t n) {
    value = ~value;
    if (n < 512)
        return ~narrow(value, data, n);
    return ~(wide ? folded(value, data, n) : streams(value, data, n));
}

#else /* the module refuses to load, so that none of these is called */

int crc32c_setup(void) { return 0; }
uint32_t crc32c(uint32_t value, const uint8_t *data, size_t n) { return (void)data, (void)n, value; }
uint32_t crc32c_in_streams(uint32_t value, const uint8_t *data, size_t n) {
    return crc32c(value, data, n);
}
uint32_t crc32c_shift_page(uint32_t value) { return value; }
uint32_t crc32c_shift_grain(uint32_t value) { return value; }

#endif
