/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Dropout masks: pure functions of (key, step, layer, row, unit), the same numbers as on the host.
 */
#ifndef SKBN_DROPOUT_CUH
#define SKBN_DROPOUT_CUH

#include "real.cuh"

/* Four 32-bit words (Salmon et al., 2011: Philox4x32-10). */
DEVICE void philox4x32(uint32_t words[4], uint32_t key_0, uint32_t key_1)
{
    for (int round = 0; round < 10; round++) {
        const uint64_t product_0 = (uint64_t)0xD2511F53u * words[0], product_1 = (uint64_t)0xCD9E8D57u * words[2];
        words[0] = (uint32_t)(product_1 >> 32) ^ words[1] ^ key_0;
        words[1] = (uint32_t)product_1;
        words[2] = (uint32_t)(product_0 >> 32) ^ words[3] ^ key_1;
        words[3] = (uint32_t)product_0;
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
}

/* The words that decide about units 4 * quad to 4 * quad + 3 of a row. */
DEVICE void dropout_words(
    uint32_t words[4], int64_t quad, int64_t row, int64_t layer, int64_t step, uint64_t key)
{
    words[0] = (uint32_t)quad;
    words[1] = (uint32_t)row;
    words[2] = (uint32_t)layer;
    words[3] = (uint32_t)step;
    philox4x32(words, (uint32_t)key, (uint32_t)(key >> 32));
}

/* Units whose word is smaller are dropped. */
DEVICE uint64_t dropout_threshold(double rate) { return (uint64_t)(rate * 4294967296.0); }

#endif
