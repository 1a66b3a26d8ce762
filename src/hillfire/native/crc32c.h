/* CRC32C at memory speed: see crc32c.c. */
#ifndef HILLFIRE_CRC32C_H
#define HILLFIRE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Finds out what the processor can do; 0 if that is too little for this module. Called once. */
int crc32c_setup(void);

/* The CRC32C of what `value` is the CRC32C of, followed by `n` bytes. */
uint32_t crc32c(uint32_t value, const uint8_t *data, size_t n);

/* The same, as processors without wide registers do it. */
uint32_t crc32c_in_streams(uint32_t value, const uint8_t *data, size_t n);

/* What `value` contributes to a CRC32C once 4 KiB or 64 KiB more have followed. */
uint32_t crc32c_shift_page(uint32_t value);
uint32_t crc32c_shift_grain(uint32_t value);

#endif
