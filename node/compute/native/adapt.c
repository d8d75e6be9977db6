/* Adapters: what a session's own low-rank matrices add to the products of the rows that it has in a
 * pass, up (down x), without a change to the weights that all share (Hu et al., LoRA, 2021).
 *
 * Both are products of fp32 like any other, one for each run that wears one: so neither who shares
 * the pass nor how a prompt is cut shows in a bit, and rows without an adapter are never touched.
 */
#include "pass.h"

/* What a run's adapter adds to the product at hand; NULL: nothing. */
static const potluck_addend *addend_of(const pass *p, const potluck_run *run) {
    if (!run->adapter) return NULL;
    const potluck_addend *found = run->adapter[p->index].at + p->site;
    return found->down.n ? found : NULL;
}

void potluck_narrow(pass *p, int32_t site, const float *x, int64_t stride) {
    if (!p->rank) return;
    char *at = p->to_widen;
    int64_t row = 0, width = padded16(p->rank);
    p->site = site;
    for (int32_t i = 0; i < p->run_count; i++) {
        const potluck_run *run = p->runs + i;
        const potluck_addend *addend = addend_of(p, run);
        p->widened[i].rows = 0;
        if (addend) {
            float *narrow = p->narrow + row * width;
            potluck_rows own =
                potluck_rows_in(POTLUCK_FP32, run->count, addend->down.k, p->to_narrow);
            potluck_prepare_all(p->pool, &own, x + row * stride, stride);
            potluck_multiply(p->pool, &addend->down, &own, narrow, width, POTLUCK_STORE);
            p->widened[i] = potluck_rows_in(POTLUCK_FP32, run->count, addend->up.k, at);
            potluck_prepare(&p->widened[i], narrow, width, 0, run->count);
            at += potluck_rows_bytes(POTLUCK_FP32, run->count, addend->up.k);
        }
        row += run->count;
    }
}

void potluck_widen_tiles(pass *p, float *y, int64_t stride, int32_t first, int32_t last) {
    for (int32_t i = 0; i < p->run_count; i++) {
        const potluck_run *run = p->runs + i;
        if (p->widened[i].rows)
            potluck_multiply_tiles(&addend_of(p, run)->up, &p->widened[i], y, stride, POTLUCK_ADD,
                                   first, last);
        y += run->count * stride;
    }
}

void potluck_adapt(pass *p, int32_t site, const float *x, int64_t x_stride, float *y,
                   int64_t y_stride) {
    if (!p->rank) return;
    potluck_narrow(p, site, x, x_stride);
    for (int32_t i = 0; i < p->run_count; i++) {
        const potluck_run *run = p->runs + i;
        if (p->widened[i].rows)
            potluck_multiply(p->pool, &addend_of(p, run)->up, &p->widened[i], y, y_stride,
                             POTLUCK_ADD);
        y += run->count * y_stride;
    }
}
