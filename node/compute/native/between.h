/* What a block does to rows between its products, and attention: one table of functions for each
 * instruction set, all of which give the same bits.
 */
#ifndef POTLUCK_BETWEEN_H
#define POTLUCK_BETWEEN_H

#include <stdint.h>

#define PAGE_ROWS 64      /* positions of a page, and of a tile of attention */
#define UNIT_QUERIES 64   /* queries of one piece of attention's work: unless a group is larger */
#define POTLUCK_SILU 0
#define POTLUCK_GELU_TANH 1

/* A page: for each key-value head its keys (head_dim, 64), its values (64, head_dim padded to 16),
 * and when `bytes`, both as int8 with a scale for each position: key scales (64), value scales. */
typedef struct potluck_pages {
    uint8_t *base;
    int64_t page_bytes;
    int32_t kv_heads, head_dim, padded_dim;
    int32_t bytes; /* 1: int8, 0: float */
} potluck_pages;

/* A head's queries of some neighbouring rows of one session, over all it sees. */
typedef struct potluck_sight {
    const potluck_pages *pages;
    const int32_t *table;  /* the session's pages of this block */
    const float *queries;  /* the first row's first head of the group, scaled */
    int64_t query_stride;  /* floats from row to row */
    float *out;            /* likewise */
    int64_t out_stride;
    int32_t kv_head, group; /* group: heads that share the keys */
    int32_t rows, position; /* position: of the first row */
    int32_t window;         /* 0: all */
    float softcap;          /* 0: none */
    float *scratch;         /* potluck_sight_floats floats */
} potluck_sight;

/* What is done to one row's queries, keys and values before attention. */
typedef struct potluck_turn {
    const potluck_pages *pages;
    const float *q_norm, *k_norm; /* NULL: none */
    const float *cosine, *sine;   /* (turned / 2) */
    float eps, scale;
    int32_t heads, turned; /* turned: elements of a head that rope turns */
    int32_t position;
    const int32_t *table;
} potluck_turn;

typedef struct potluck_between {
    /* y = x / rms(x) * weight; y may be x */
    void (*norm)(const float *x, const float *weight, float *y, int n, float eps);
    void (*add)(float *to, const float *x, int n);
    void (*add_scaled)(float *to, const float *x, float by, int n);
    /* y = act(gate) * up, by tiles of sixteen: those of gate and up alternate in `wide` */
    void (*gate)(int act, const float *wide, float *y, int tiles);
    /* norms and turns queries in place, writes keys and values to their page */
    void (*turn)(const potluck_turn *turn, float *qkv);
    void (*attend)(const potluck_sight *sight);
    /* x becomes exp(x - max) / sum */
    void (*softmax)(float *x, int n);
} potluck_between;

static inline int64_t potluck_sight_floats(int64_t padded_dim, int64_t queries) {
    return queries * (padded_dim + 16 + 1) + 4 * PAGE_ROWS;
}

static inline int64_t potluck_head_bytes(const potluck_pages *p) {
    int64_t numbers = (int64_t)PAGE_ROWS * (p->head_dim + p->padded_dim);
    return p->bytes ? numbers + 2 * PAGE_ROWS * (int64_t)sizeof(float)
                    : numbers * (int64_t)sizeof(float);
}

extern const potluck_between potluck_between_plain;
#if defined(__x86_64__) || defined(_M_X64)
extern const potluck_between potluck_between_avx2, potluck_between_avx512;
#elif defined(__aarch64__)
extern const potluck_between potluck_between_neon;
#endif

#endif
