/* Which kernels this CPU runs, and how fast it reads memory. */
#include <stdlib.h>
#include <time.h>

#include "kernels.h"

#ifndef POTLUCK_STAMP
#define POTLUCK_STAMP "unstamped"
#endif

/* Best first. */
static const potluck_kernels *const ALL[] = {
#if defined(__x86_64__)
    &potluck_linear_avx512vnni, &potluck_linear_avx512, &potluck_linear_avx2,
#elif defined(__aarch64__)
    &potluck_linear_neon,
#endif
    &potluck_linear_scalar,
};
enum { COUNT = sizeof ALL / sizeof *ALL };

static const potluck_kernels *in_use;

static const potluck_kernels *named(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (strcmp(ALL[i]->name, name) == 0 && ALL[i]->supported()) return ALL[i];
    return NULL;
}

/* Before main, and so before any thread of ours. */
__attribute__((constructor)) static void choose(void) {
    const char *wanted = getenv("POTLUCK_ISA");
    if (wanted && *wanted) in_use = named(wanted);
    for (int i = 0; in_use == NULL; i++)
        if (ALL[i]->supported()) in_use = ALL[i];
}

const potluck_kernels *potluck_kernels_in_use(void) { return in_use; }
const char *potluck_isa(void) { return in_use->name; }
int potluck_has_isa(const char *name) { return named(name) != NULL; }

/* The build looks for the first half in the file, to tell a stale library without loading it. */
static const char STAMP[] = "potluck-stamp:" POTLUCK_STAMP;
const char *potluck_stamp(void) { return STAMP + sizeof "potluck-stamp:" - 1; }

int potluck_use_isa(const char *name) {
    const potluck_kernels *wanted = named(name);
    if (wanted == NULL) return -1;
    in_use = wanted;
    return 0;
}

enum { READ_A_TASK = 1 << 20, TASKS_A_RUN = 16, PASSES = 7 };

typedef struct {
    const char *memory;
    uint64_t seen;
} reading;

typedef uint64_t eight __attribute__((vector_size(64), may_alias));

#if defined(__x86_64__)
#define WIDE(isa) __attribute__((target(isa)))
#else
#define WIDE(isa)
#endif

/* One megabyte, summed in wide registers so that nothing but the loads takes time. */
#define READ_LOOP(context, index)                                                     \
    reading *job = context;                                                           \
    const eight *from = (const eight *)(job->memory + (size_t)(index) * READ_A_TASK); \
    eight a = {0}, b = {0}, c = {0}, d = {0};                                         \
    for (size_t i = 0; i < READ_A_TASK / sizeof(eight); i += 4) {                     \
        a += from[i];                                                                 \
        b += from[i + 1];                                                             \
        c += from[i + 2];                                                             \
        d += from[i + 3];                                                             \
    }                                                                                 \
    a += b + c + d;                                                                   \
    __atomic_fetch_xor(&job->seen, a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7], __ATOMIC_RELAXED)

static void read_plain(void *context, int32_t index, int32_t thread) {
    (void)thread;
    READ_LOOP(context, index);
}
WIDE("avx2") static void read_avx2(void *context, int32_t index, int32_t thread) {
    (void)thread;
    READ_LOOP(context, index);
}
WIDE("avx512f") static void read_avx512(void *context, int32_t index, int32_t thread) {
    (void)thread;
    READ_LOOP(context, index);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double potluck_read_bandwidth(int32_t threads, size_t bytes) {
    int32_t tasks = (int32_t)(bytes / READ_A_TASK) / TASKS_A_RUN * TASKS_A_RUN;
    size_t size = (size_t)tasks * READ_A_TASK;
    potluck_pool *pool = potluck_pool_new(threads);
    char *memory = tasks > 0 ? potluck_alloc(size) : NULL;
    double best = 0.0;
    if (pool && memory) {
        memset(memory, 1, size);
        potluck_task task = potluck_has_isa("avx512") ? read_avx512
                            : potluck_has_isa("avx2") ? read_avx2
                                                      : read_plain;
        reading job = {memory, 0};
        for (int32_t run = 0; run < PASSES * tasks / TASKS_A_RUN; run++) {
            job.memory = memory + (size_t)run % (tasks / TASKS_A_RUN) * TASKS_A_RUN * READ_A_TASK;
            double start = seconds();
            potluck_pool_run(pool, task, &job, TASKS_A_RUN);
            double rate = (double)TASKS_A_RUN * READ_A_TASK / (seconds() - start);
            if (rate > best) best = rate;
        }
        if (job.seen == 1) best = -best; /* never: keeps the loads */
    }
    potluck_release(memory, size);
    potluck_pool_free(pool);
    return best;
}
