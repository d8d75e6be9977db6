/* Blocks of a transformer over rows of many sessions, in one call.
 *
 *     hidden -- norm -- qkv -- turn -- attend -- out --(norm)--(+)-- norm -- gate up -- down ...
 *        '------------------------------------------------------'
 *
 * A row is one position of one session. What comes out for a row depends on its session's rows up
 * to it and on nothing else, bit for bit: neither on the rows beside it, nor on where its prompt was
 * cut, nor on threads, nor on the instruction set (linear.h says why for products, attention.inc
 * for attention; the rest is done row by row).
 *
 * A session may wear an adapter (adapt.c): to four products of each block it adds up (down x), for
 * its own rows alone.
 */
#ifndef POTLUCK_BLOCK_H
#define POTLUCK_BLOCK_H

#include "between.h"
#include "linear.h"

typedef struct potluck_block {
    potluck_linear qkv; /* q, k and v one below the other */
    potluck_linear out;
    potluck_linear gate_up; /* tiles of sixteen outputs of gate and of up, in turns */
    potluck_linear down;
    potluck_linear router; /* experts outputs; a mixture has this and the two below instead */
    const potluck_linear *expert_gate_up, *expert_down;
    const float *norm_in, *norm_mid;
    const float *norm_attended, *norm_fed; /* of what is added to the residual; NULL: none */
    const float *q_norm, *k_norm;          /* by head; NULL: none */
    float softcap;                         /* of attention's scores; 0: none */
    int32_t window;                        /* positions that attention sees; 0: all */
    int32_t rope;                          /* which of a run's tables */
    int32_t ffn;                           /* of each feed-forward */
    int32_t experts;                       /* 0: no mixture */
    int32_t experts_per_token;
    int32_t renormalise; /* the chosen experts' shares are made to sum to 1 */
} potluck_block;

typedef struct potluck_model {
    int32_t hidden, heads, kv_heads, head_dim;
    int32_t turned; /* elements of a head that rope turns */
    int32_t act;
    float eps, scale;
    int32_t blocks;
    int32_t bytes; /* 1: pages hold int8 */
    const potluck_block *block;
} potluck_model;

enum { POTLUCK_ROPES = 2 };
enum { POTLUCK_QKV, POTLUCK_OUT, POTLUCK_GATE_UP, POTLUCK_DOWN, POTLUCK_SITES };

/* What an adapter adds to a product, of fp32; down.n = up.k is its rank, 0: it adds nothing. `up` has
 * the product's outputs in the product's order. */
typedef struct potluck_addend {
    potluck_linear down, up;
} potluck_addend;

typedef struct potluck_adapter { /* of one block */
    potluck_addend at[POTLUCK_SITES];
} potluck_adapter;

/* Rows of one session that follow each other. */
typedef struct potluck_run {
    const int32_t *table; /* of the pass's first block */
    int64_t table_stride; /* from block to block */
    const float *cosine[POTLUCK_ROPES], *sine[POTLUCK_ROPES]; /* (positions, turned / 2) */
    const potluck_adapter *adapter; /* of the pass's first block, the others behind; NULL: none */
    int32_t at, count;
} potluck_run;

/* What a page of one block takes. */
POTLUCK_API int64_t potluck_page_bytes(int32_t kv_heads, int32_t head_dim, int32_t bytes);
/* The scratch memory of a pass of so many rows, in this many runs. rank: of the widest addend that
 * one of them wears; 0: none wears any. */
POTLUCK_API size_t potluck_pass_bytes(const potluck_model *model, int32_t rows, int32_t runs,
                                      int32_t rank, int32_t threads);
/* Runs `hidden` (rows, model.hidden) through blocks first..last-1, in place; keys and values go to
 * the pages that the runs' tables name. scratch: potluck_pass_bytes, aligned to 64. */
POTLUCK_API void potluck_pass(const potluck_model *model, potluck_pool *pool, void *pages,
                              int64_t page_bytes, const potluck_run *runs, int32_t run_count,
                              int32_t rank, float *hidden, int32_t rows, int32_t first,
                              int32_t last, void *scratch);

#endif
