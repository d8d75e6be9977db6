#include "block.h"

#include "pass.h"

enum {
    NUMBERS_A_TASK = 32768,   /* some 10 us of norms and the like */
    PRODUCTS_A_TASK = 262144, /* some 10 us of attention */
    MOST_TASKS = 1 << 20,
    ALIGNMENT = 64,
};

static const potluck_between *between_in_use(void) {
    const char *isa = potluck_isa();
#if defined(__x86_64__)
    if (strncmp(isa, "avx512", 6) == 0) return &potluck_between_avx512;
    if (strcmp(isa, "avx2") == 0) return &potluck_between_avx2;
#elif defined(__aarch64__)
    if (strcmp(isa, "neon") == 0) return &potluck_between_neon;
#endif
    (void)isa;
    return &potluck_between_plain;
}

static void some_rows(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    int32_t first = index * p->rows_a_task;
    (void)thread;
    p->work(p, first, least_of(p->rows, first + p->rows_a_task));
}

void potluck_by_rows(pass *p, row_work work, int64_t numbers) {
    int32_t size = (int32_t)(NUMBERS_A_TASK / numbers) + 1;
    if (p->rows <= size) {
        work(p, 0, p->rows);
        return;
    }
    p->work = work;
    p->rows_a_task = size;
    potluck_pool_run(p->pool, some_rows, p, (p->rows + size - 1) / size);
}

static void make_ready(pass *p, const potluck_linear *matrix) {
    p->now = potluck_rows_in(matrix->format, p->rows, matrix->k, p->prepared);
}

/* ---- attention ------------------------------------------------------------------------------- */

static void norm_rows(pass *p, const float *weight, int32_t first, int32_t last) {
    int64_t width = p->model->hidden;
    for (int64_t row = first; row < last; row++)
        p->between->norm(p->hidden + row * width, weight, p->x + row * width, (int)width,
                         p->model->eps);
}

static void norm_in(pass *p, int32_t first, int32_t last) {
    norm_rows(p, p->block->norm_in, first, last);
    potluck_prepare(&p->now, p->x, p->model->hidden, first, last);
}

static int32_t q_width(const potluck_model *m) { return m->heads * m->head_dim; }
static int32_t qkv_width(const potluck_model *m) {
    return (m->heads + 2 * m->kv_heads) * m->head_dim;
}

static const int32_t *table_of(const pass *p, const potluck_run *run) {
    return run->table + p->index * run->table_stride;
}

static void turn_rows(pass *p, int32_t first, int32_t last) {
    const potluck_model *m = p->model;
    const potluck_block *b = p->block;
    potluck_turn turn = {.pages = &p->pages, .q_norm = b->q_norm, .k_norm = b->k_norm,
                         .eps = m->eps, .scale = m->scale, .heads = m->heads, .turned = m->turned};
    for (int64_t row = first; row < last; row++) {
        const potluck_run *run = p->runs + p->run_of[row];
        int64_t place = (int64_t)p->position[row] * (m->turned / 2);
        turn.position = p->position[row];
        turn.table = table_of(p, run);
        turn.cosine = run->cosine[b->rope] + place;
        turn.sine = run->sine[b->rope] + place;
        p->between->turn(&turn, p->qkv + row * qkv_width(m));
    }
}

/* Items: units within parts of the heads of a group, within key-value heads. */
static int64_t items_of(const pass *p) {
    return (int64_t)p->unit_count * p->parts * p->model->kv_heads;
}

static void see(pass *p, int32_t item, int32_t thread) {
    const potluck_model *m = p->model;
    const unit *u = p->units + item % p->unit_count;
    int32_t part = item / p->unit_count % p->parts, head = item / p->unit_count / p->parts;
    int32_t group = m->heads / m->kv_heads, first = part * p->part_heads;
    int64_t query = ((int64_t)head * group + first) * m->head_dim;
    potluck_sight sight = {
        .pages = &p->pages,
        .table = table_of(p, p->runs + u->run),
        .queries = p->qkv + (int64_t)u->row * qkv_width(m) + query,
        .query_stride = qkv_width(m),
        .out = p->attended + (int64_t)u->row * q_width(m) + query,
        .out_stride = q_width(m),
        .kv_head = head,
        .group = least_of(p->part_heads, group - first),
        .rows = u->rows,
        .position = p->position[u->row],
        .window = p->block->window,
        .softcap = p->block->softcap,
        .scratch = p->sights + thread * p->sight_floats,
    };
    p->between->attend(&sight);
}

static void see_some(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    int64_t items = items_of(p);
    int32_t last = (int32_t)(items * (index + 1) / p->sight_tasks);
    for (int32_t item = (int32_t)(items * index / p->sight_tasks); item < last; item++)
        see(p, item, thread);
}

/* How many positions the rows see, all together. */
static int64_t seen(const pass *p) {
    int64_t sum = 0;
    int32_t window = p->block->window;
    for (int32_t row = 0; row < p->rows; row++) {
        int32_t all = p->position[row] + 1;
        sum += window ? least_of(all, window) : all;
    }
    return sum;
}

/* With fewer items than threads the heads of a group part, by fours as attention takes them: the
 * keys they shared are then read by several. */
static void part_groups(pass *p, int64_t tasks) {
    int32_t group = p->model->heads / p->model->kv_heads, fours = (group + 3) / 4;
    int64_t items = (int64_t)p->unit_count * p->model->kv_heads;
    int64_t wanted = (least_of(p->threads, (int32_t)tasks) + items - 1) / items;
    p->part_heads = wanted >= fours ? 4 : (int32_t)((fours + wanted - 1) / wanted) * 4;
    p->parts = (group + p->part_heads - 1) / p->part_heads;
}

static void attend(pass *p) {
    const potluck_model *m = p->model;
    int64_t tasks = seen(p) * q_width(m) * 2 / PRODUCTS_A_TASK + 1;
    tasks = tasks < MOST_TASKS ? tasks : MOST_TASKS;
    part_groups(p, tasks);
    int64_t items = items_of(p);
    p->sight_tasks = (int32_t)(tasks < items ? tasks : items);
    if (p->sight_tasks == 1)
        see_some(p, 0, 0);
    else
        potluck_pool_run(p->pool, see_some, p, p->sight_tasks);
}

static void prepare_attended(pass *p, int32_t first, int32_t last) {
    potluck_prepare(&p->now, p->attended, q_width(p->model), first, last);
}

/* ---- the feed-forward ------------------------------------------------------------------------ */

/* What attention gave stands in x where it is normed before it adds, else in hidden already. */
static void norm_mid(pass *p, int32_t first, int32_t last) {
    int64_t width = p->model->hidden;
    if (p->block->norm_attended) potluck_add_normed(p, p->block->norm_attended, first, last);
    norm_rows(p, p->block->norm_mid, first, last);
    potluck_prepare(&p->now, p->x, width, first, last);
}

void potluck_add_normed(pass *p, const float *weight, int32_t first, int32_t last) {
    int64_t width = p->model->hidden;
    for (int64_t row = first; row < last; row++) {
        float *x = p->x + row * width;
        p->between->norm(x, weight, x, (int)width, p->model->eps);
        p->between->add(p->hidden + row * width, x, (int)width);
    }
}

static void add_fed(pass *p, int32_t first, int32_t last) {
    potluck_add_normed(p, p->block->norm_fed, first, last);
}

void potluck_gate_tiles(pass *p, const potluck_linear *matrix, const potluck_rows *rows,
                        int64_t slot, int32_t first, int32_t last) {
    int64_t ffn = padded16(p->block->ffn);
    float *wide = p->wide + slot * 2 * ffn, *gated = p->gated + slot * ffn;
    potluck_multiply_tiles(matrix, rows, wide, 2 * ffn, POTLUCK_STORE, first, last);
    if (p->rank && !p->block->experts) potluck_widen_tiles(p, wide, 2 * ffn, first, last);
    for (int64_t row = 0; row < rows->rows; row++)
        p->between->gate(p->model->act, wide + row * 2 * ffn + first * POTLUCK_LANES,
                         gated + row * ffn + first / 2 * POTLUCK_LANES, (last - first) / 2);
}

int32_t potluck_even_tiles(const pass *p, const potluck_linear *matrix, int32_t rows) {
    return (potluck_tiles_a_task(matrix, rows, p->threads) + 1) & ~1;
}

static void gate_some(void *context, int32_t index, int32_t thread) {
    pass *p = context;
    const potluck_linear *matrix = &p->block->gate_up;
    int32_t first = index * p->tiles_a_task;
    (void)thread;
    potluck_gate_tiles(p, matrix, &p->now, 0, first,
                       least_of(potluck_tiles(matrix->n), first + p->tiles_a_task));
}

static void prepare_gated(pass *p, int32_t first, int32_t last) {
    potluck_prepare(&p->now, p->gated, padded16(p->block->ffn), first, last);
}

static void feed(pass *p) {
    const potluck_block *b = p->block;
    make_ready(p, &b->gate_up);
    potluck_by_rows(p, norm_mid, p->model->hidden * 2);
    potluck_narrow(p, POTLUCK_GATE_UP, p->x, p->model->hidden);
    p->tiles_a_task = potluck_even_tiles(p, &b->gate_up, p->rows);
    int32_t tiles = potluck_tiles(b->gate_up.n);
    potluck_pool_run(p->pool, gate_some, p, (tiles + p->tiles_a_task - 1) / p->tiles_a_task);
    make_ready(p, &b->down);
    potluck_by_rows(p, prepare_gated, b->ffn);
    float *y = b->norm_fed ? p->x : p->hidden;
    potluck_multiply(p->pool, &b->down, &p->now, y, p->model->hidden,
                     b->norm_fed ? POTLUCK_STORE : POTLUCK_ADD);
    potluck_adapt(p, POTLUCK_DOWN, p->gated, padded16(b->ffn), y, p->model->hidden);
    if (b->norm_fed) potluck_by_rows(p, add_fed, p->model->hidden);
}

/* ---- a pass ---------------------------------------------------------------------------------- */

static void run_block(pass *p) {
    const potluck_block *b = p->block;
    const potluck_model *m = p->model;
    make_ready(p, &b->qkv);
    potluck_by_rows(p, norm_in, m->hidden * 2);
    potluck_multiply(p->pool, &b->qkv, &p->now, p->qkv, qkv_width(m), POTLUCK_STORE);
    potluck_adapt(p, POTLUCK_QKV, p->x, m->hidden, p->qkv, qkv_width(m));
    potluck_by_rows(p, turn_rows, qkv_width(m));
    attend(p);
    make_ready(p, &b->out);
    potluck_by_rows(p, prepare_attended, q_width(m));
    float *y = b->norm_attended ? p->x : p->hidden;
    potluck_multiply(p->pool, &b->out, &p->now, y, m->hidden,
                     b->norm_attended ? POTLUCK_STORE : POTLUCK_ADD);
    potluck_adapt(p, POTLUCK_OUT, p->attended, q_width(m), y, m->hidden);
    if (b->experts) {
        make_ready(p, &b->router);
        potluck_by_rows(p, norm_mid, m->hidden * 2);
        potluck_feed_mixture(p);
    } else {
        feed(p);
    }
}

static void *take(char **at, size_t bytes) {
    char *start = *at;
    *at += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return start;
}

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

static size_t prepared_bytes(const potluck_linear *matrix, int32_t rows) {
    return matrix->k ? potluck_rows_bytes(matrix->format, rows, matrix->k) : 0;
}

/* Bytes of prepared rows, at most; of a mixture the slots' stand one expert after the other. */
static size_t prepared_most(const potluck_model *m, int32_t rows) {
    size_t bytes = 0;
    for (int32_t i = 0; i < m->blocks; i++) {
        const potluck_block *b = m->block + i;
        bytes = most(bytes, prepared_bytes(&b->qkv, rows));
        bytes = most(bytes, prepared_bytes(&b->out, rows));
        bytes = most(bytes, prepared_bytes(&b->gate_up, rows));
        bytes = most(bytes, prepared_bytes(&b->down, rows));
        bytes = most(bytes, prepared_bytes(&b->router, rows));
        int32_t slots = b->experts ? rows * b->experts_per_token : 0;
        size_t gaps = (size_t)least_of(slots, b->experts) * ALIGNMENT;
        if (slots) bytes = most(bytes, prepared_bytes(&b->expert_gate_up[0], slots) + gaps);
        if (slots) bytes = most(bytes, prepared_bytes(&b->expert_down[0], slots) + gaps);
    }
    return bytes;
}

/* Lays the pass out in `scratch`; returns the bytes that it takes. */
static size_t lay_out(pass *p, void *scratch) {
    const potluck_model *m = p->model;
    int32_t group = m->heads / m->kv_heads;
    int64_t wide = 0, slots = 0, experts = 0, chosen = 0, rows = p->rows;
    size_t inputs = most(m->hidden, q_width(m)); /* of a product, at most */
    for (int32_t i = 0; i < m->blocks; i++) {
        const potluck_block *b = m->block + i;
        int64_t own = b->experts ? b->experts_per_token : 1;
        wide = (int64_t)most(wide, own * padded16(b->ffn));
        inputs = most(inputs, b->ffn);
        if (b->experts) slots = (int64_t)most(slots, rows * own);
        experts = (int64_t)most(experts, b->experts);
        chosen = (int64_t)most(chosen, b->experts ? own : 0);
    }
    p->sight_floats = padded16((int32_t)potluck_sight_floats(
        p->pages.padded_dim, group > UNIT_QUERIES ? group : UNIT_QUERIES));
    char *at = scratch;
    p->x = take(&at, rows * m->hidden * sizeof(float));
    p->qkv = take(&at, rows * qkv_width(m) * sizeof(float));
    p->attended = take(&at, rows * q_width(m) * sizeof(float));
    p->wide = take(&at, rows * wide * 2 * sizeof(float));
    p->gated = take(&at, rows * wide * sizeof(float));
    p->sights = take(&at, (size_t)p->threads * p->sight_floats * sizeof(float));
    p->prepared = take(&at, prepared_most(m, p->rows));
    p->run_of = take(&at, rows * sizeof(int32_t));
    p->position = take(&at, rows * sizeof(int32_t));
    p->units = take(&at, (size_t)(rows + p->run_count) * sizeof(unit));
    p->logits = take(&at, rows * experts * sizeof(float));
    p->fed = take(&at, slots * m->hidden * sizeof(float));
    p->weight = take(&at, rows * chosen * sizeof(float));
    p->chosen = take(&at, rows * chosen * sizeof(int32_t));
    p->slot = take(&at, rows * chosen * sizeof(int32_t));
    p->row_of = take(&at, slots * sizeof(int32_t));
    p->shares = take(&at, experts * sizeof(share));
    if (p->rank) {
        p->narrow = take(&at, rows * padded16(p->rank) * sizeof(float));
        p->to_narrow = take(&at, potluck_rows_bytes(POTLUCK_FP32, p->rows, (int32_t)inputs));
        p->to_widen = take(&at, potluck_rows_bytes(POTLUCK_FP32, p->rows, p->rank));
        p->widened = take(&at, p->run_count * sizeof(potluck_rows));
    }
    return (size_t)(at - (char *)scratch);
}

static void cut_into_units(pass *p) {
    int32_t group = p->model->heads / p->model->kv_heads;
    int32_t size = group < UNIT_QUERIES ? UNIT_QUERIES / group : 1, row = 0;
    for (int32_t run = 0; run < p->run_count; run++) {
        int32_t start = row, stop = row + p->runs[run].count;
        for (int32_t first = start; first < stop; first += size)
            p->units[p->unit_count++] = (unit){run, first, least_of(size, stop - first)};
        for (; row < stop; row++) {
            p->run_of[row] = run;
            p->position[row] = p->runs[run].at + row - start;
        }
    }
}

static potluck_pages pages_of(const potluck_model *m, void *base, int64_t page_bytes) {
    return (potluck_pages){base, page_bytes, m->kv_heads, m->head_dim, padded16(m->head_dim),
                           m->bytes};
}

int64_t potluck_page_bytes(int32_t kv_heads, int32_t head_dim, int32_t bytes) {
    potluck_pages pages = {NULL, 0, kv_heads, head_dim, padded16(head_dim), bytes};
    return kv_heads * potluck_head_bytes(&pages);
}

size_t potluck_pass_bytes(const potluck_model *model, int32_t rows, int32_t runs, int32_t rank,
                          int32_t threads) {
    pass p = {.model = model, .rows = rows, .run_count = runs, .rank = rank, .threads = threads,
              .pages = pages_of(model, NULL, 0)};
    return lay_out(&p, NULL);
}

void potluck_pass(const potluck_model *model, potluck_pool *pool, void *pages, int64_t page_bytes,
                  const potluck_run *runs, int32_t run_count, int32_t rank, float *hidden,
                  int32_t rows, int32_t first, int32_t last, void *scratch) {
    pass p = {.model = model, .pool = pool, .between = between_in_use(), .runs = runs,
              .run_count = run_count, .rank = rank, .rows = rows,
              .threads = potluck_pool_threads(pool),
              .pages = pages_of(model, pages, page_bytes), .hidden = hidden};
    lay_out(&p, scratch);
    cut_into_units(&p);
    for (int32_t i = first; i < last; i++) {
        p.block = model->block + i;
        p.index = i - first;
        run_block(&p);
    }
}
