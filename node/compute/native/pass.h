/* A pass while it runs: what block.c and mixture.c share. */
#ifndef POTLUCK_PASS_H
#define POTLUCK_PASS_H

#include <string.h>

#include "block.h"

/* Rows of one run that attention treats as one piece of work for each key-value head. */
typedef struct unit {
    int32_t run, row, rows; /* row: of the pass */
} unit;

/* The slots of an expert: one after another. */
typedef struct share {
    int32_t expert, slot, count;
    int32_t tiles_a_task, task; /* of the product at hand; task: its first */
    potluck_rows prepared;
} share;

typedef struct pass pass;
typedef void (*row_work)(pass *p, int32_t first, int32_t last);

struct pass {
    const potluck_model *model;
    const potluck_block *block;
    const potluck_between *between;
    potluck_pool *pool;
    const potluck_run *runs;
    int32_t rows, threads, run_count;
    int32_t index; /* of the block among the pass's */
    potluck_pages pages;

    float *hidden;   /* (rows, hidden), the residual stream */
    float *x;        /* (rows, hidden): normed, or to be added */
    float *qkv;      /* (rows, heads + 2 kv_heads, head_dim) */
    float *attended; /* (rows, heads, head_dim) */
    float *wide;     /* (slots, 2 ffn): gate and up; without a mixture a slot is a row */
    float *gated;    /* (slots, ffn); ffn is padded to 16 in both */
    void *prepared;  /* rows as a product wants them */
    int32_t *run_of, *position; /* by row */
    unit *units;
    float *sights; /* scratch of attention, for each thread */
    int64_t sight_floats;
    int32_t unit_count, sight_tasks;
    int32_t parts, part_heads; /* of the heads of a group */

    /* of a mixture; a slot is a row at one of its experts, in order of experts, then of rows */
    float *logits;                  /* (rows, experts) */
    float *fed;                     /* (slots, hidden) */
    float *weight;                  /* (rows, experts_per_token), by ascending expert */
    int32_t *chosen, *slot;         /* likewise */
    int32_t *row_of;                /* by slot */
    share *shares;                  /* of the experts that somebody chose */
    int32_t share_count;

    /* of adapters */
    int32_t rank;          /* of the widest addend that a run wears; 0: none wears any */
    int32_t site;          /* which product something is added to now */
    float *narrow;         /* (rows, rank padded to 16): down x */
    void *to_narrow;       /* x as `down` wants it, of one run at a time */
    void *to_widen;        /* down x as `up` wants it, of all runs */
    potluck_rows *widened; /* by run; no rows: nothing is added to it now */

    potluck_rows now; /* what is prepared for the next product */
    row_work work;
    int32_t rows_a_task, tiles_a_task;
};

static inline int32_t padded16(int32_t n) { return (n + 15) & ~15; }
static inline int32_t least_of(int32_t a, int32_t b) { return a < b ? a : b; }

/* Calls work for ranges of rows, over the pool where there is enough of it. numbers: that it
 * touches for each row. */
void potluck_by_rows(pass *p, row_work work, int64_t numbers);
/* Norms rows of x and adds them to hidden. */
void potluck_add_normed(pass *p, const float *weight, int32_t first, int32_t last);
/* Tiles of gate and up, and what comes of them, for the rows of slots from `slot` on. */
void potluck_gate_tiles(pass *p, const potluck_linear *matrix, const potluck_rows *rows,
                        int64_t slot, int32_t first, int32_t last);
int32_t potluck_even_tiles(const pass *p, const potluck_linear *matrix, int32_t rows);
/* Adds to rows of y, the product at this site of the rows of x, what their adapters add. */
void potluck_adapt(pass *p, int32_t site, const float *x, int64_t x_stride, float *y,
                   int64_t y_stride);
/* The same in two: what is to be added, then tiles of it, on the calling thread. */
void potluck_narrow(pass *p, int32_t site, const float *x, int64_t stride);
void potluck_widen_tiles(pass *p, float *y, int64_t stride, int32_t first, int32_t last);
/* Adds to hidden what the experts give for the rows of x, which are `now` for the router. */
void potluck_feed_mixture(pass *p);

#endif
