/* A mixture of feed-forwards: each row goes to the experts that its router chooses.
 *
 * Rows are grouped by expert, so that an expert's weights are read once. What a row gets is summed
 * in order of experts, whoever else was in the pass; of equal shares the first expert's is chosen.
 */
#include "pass.h"

enum { ALIGNMENT = 64 };

/* The experts of a row: the largest logits, and their shares of the whole softmax. */
static void choose_rows(pass *p, int32_t first, int32_t last) {
    const potluck_block *b = p->block;
    int32_t count = b->experts_per_token;
    for (int64_t row = first; row < last; row++) {
        float *share_of = p->logits + row * b->experts, sum = 0.0f;
        p->between->softmax(share_of, b->experts);
        int32_t *chosen = p->chosen + row * count;
        float *weight = p->weight + row * count;
        for (int32_t i = 0; i < count; i++) {
            int32_t best = -1;
            for (int32_t expert = 0; expert < b->experts; expert++)
                if (share_of[expert] >= 0.0f && (best < 0 || share_of[expert] > share_of[best]))
                    best = expert;
            if (best < 0) best = i; /* nothing here is a number */
            float share = share_of[best];
            share_of[best] = -1.0f;
            sum += share;
            int32_t at = i; /* sorted in by expert */
            for (; at > 0 && chosen[at - 1] > best; at--) {
                chosen[at] = chosen[at - 1];
                weight[at] = weight[at - 1];
            }
            chosen[at] = best;
            weight[at] = share;
        }
        for (int32_t i = 0; b->renormalise && i < count; i++) weight[i] /= sum;
    }
}

/* Gives every row a slot at each of its experts. */
static void share_out(pass *p) {
    const potluck_block *b = p->block;
    int32_t count = b->experts_per_token, slots = 0;
    p->share_count = 0;
    for (int32_t expert = 0; expert < b->experts; expert++) {
        int32_t first = slots;
        for (int32_t row = 0; row < p->rows; row++)
            for (int32_t i = 0; i < count; i++)
                if (p->chosen[row * count + i] == expert) {
                    p->slot[row * count + i] = slots;
                    p->row_of[slots++] = row;
                }
        if (slots > first)
            p->shares[p->share_count++] =
                (share){.expert = expert, .slot = first, .count = slots - first};
    }
}

/* The rows of every share, laid out for a product with its expert's matrix. */
static void lay_out_shares(pass *p, const potluck_linear *matrices) {
    char *at = p->prepared;
    for (int32_t i = 0; i < p->share_count; i++) {
        share *s = p->shares + i;
        const potluck_linear *matrix = matrices + s->expert;
        s->prepared = potluck_rows_in(matrix->format, s->count, matrix->k, at);
        size_t bytes = potluck_rows_bytes(matrix->format, s->count, matrix->k);
        at += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
}

static void prepare_chosen(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    const share *s = p->shares + index;
    int64_t width = p->model->hidden;
    (void)thread;
    for (int32_t i = 0; i < s->count; i++) /* a stride of 0: each row stands elsewhere */
        potluck_prepare(&s->prepared, p->x + p->row_of[s->slot + i] * width, 0, i, i + 1);
}

static void prepare_gated(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    const share *s = p->shares + index;
    int64_t ffn = padded16(p->block->ffn);
    (void)thread;
    potluck_prepare(&s->prepared, p->gated + s->slot * ffn, ffn, 0, s->count);
}

/* Calls task for the tiles of all shares' products; every index is one share's. */
static void over_tiles(pass *p, const potluck_linear *matrices, potluck_task task) {
    int32_t tasks = 0;
    for (int32_t i = 0; i < p->share_count; i++) {
        share *s = p->shares + i;
        const potluck_linear *matrix = matrices + s->expert;
        s->tiles_a_task = potluck_even_tiles(p, matrix, s->count);
        s->task = tasks;
        tasks += (potluck_tiles(matrix->n) + s->tiles_a_task - 1) / s->tiles_a_task;
    }
    potluck_pool_run(p->pool, task, p, tasks);
}

static const share *share_of_task(const pass *p, int32_t task) {
    int32_t i = p->share_count - 1;
    while (p->shares[i].task > task) i--;
    return p->shares + i;
}

static void gate_some(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    const share *s = share_of_task(p, index);
    const potluck_linear *matrix = p->block->expert_gate_up + s->expert;
    int32_t first = (index - s->task) * s->tiles_a_task;
    (void)thread;
    potluck_gate_tiles(p, matrix, &s->prepared, s->slot, first,
                       least_of(potluck_tiles(matrix->n), first + s->tiles_a_task));
}

static void down_some(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    const share *s = share_of_task(p, index);
    const potluck_linear *matrix = p->block->expert_down + s->expert;
    int32_t first = (index - s->task) * s->tiles_a_task;
    int64_t width = p->model->hidden;
    (void)thread;
    potluck_multiply_tiles(matrix, &s->prepared, p->fed + s->slot * width, width, POTLUCK_STORE,
                           first, least_of(potluck_tiles(matrix->n), first + s->tiles_a_task));
}

static void gather_rows(pass *p, int32_t first, int32_t last) {
    int64_t width = p->model->hidden;
    int32_t count = p->block->experts_per_token;
    for (int64_t row = first; row < last; row++) {
        float *x = p->x + row * width;
        memset(x, 0, (size_t)width * sizeof(float));
        for (int64_t i = row * count; i < (row + 1) * count; i++)
            p->between->add_scaled(x, p->fed + p->slot[i] * width, p->weight[i], (int)width);
        if (!p->block->norm_fed) p->between->add(p->hidden + row * width, x, (int)width);
    }
    if (p->block->norm_fed) potluck_add_normed(p, p->block->norm_fed, first, last);
}

void potluck_feed_mixture(pass *p) {
    const potluck_block *b = p->block;
    potluck_multiply(p->pool, &b->router, &p->now, p->logits, b->experts, POTLUCK_STORE);
    potluck_by_rows(p, choose_rows, (int64_t)b->experts * (b->experts_per_token + 4));
    share_out(p);
    lay_out_shares(p, b->expert_gate_up);
    potluck_pool_run(p->pool, prepare_chosen, p, p->share_count);
    over_tiles(p, b->expert_gate_up, gate_some);
    lay_out_shares(p, b->expert_down);
    potluck_pool_run(p->pool, prepare_gated, p, p->share_count);
    over_tiles(p, b->expert_down, down_some);
    potluck_by_rows(p, gather_rows, (int64_t)p->model->hidden * b->experts_per_token);
}
