/* A pool of threads that hands out tasks one by one, spins for microseconds, lets others go first
 * for some more, and then sleeps: to be woken takes longer than most waits within a pass.
 *
 * One 64-bit ticket holds what is to be had: how many tasks the run has, and the next one. A thread
 * takes a task by adding one to it, and reads the run's task and context only after that: a run
 * cannot end, nor the next begin, before the taken task is done. So a thread that wakes late finds
 * either nothing or a task of the run that is on now. Nobody waits for threads that took no task:
 * when other processes hold the cores, the calling thread does all of it by itself. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "linear.h"

/* A spin is a pause of 10 to 40 ns on most CPUs: 20 to 80 us; who yields on a free CPU is back in
 * 0.3 to 1 us. Measured: passes take 0.94 to 1.0 of the time on free CPUs, 0.9 beside others; ten
 * times the spins in place of it 0.96 to 1.0, but 1.15 beside others. */
enum { SPINS = 2000, YIELDS = 400, LINE = 64 };

struct potluck_pool {
    _Alignas(LINE) _Atomic uint64_t ticket; /* tasks << 32 | next */
    _Alignas(LINE) _Atomic int32_t done;
    _Alignas(LINE) _Atomic uint32_t run; /* counts runs, so that a sleeper sees a new one */
    _Atomic int32_t sleepers, caller_sleeps, ends;
    potluck_task task;
    void *context;
    int32_t threads, spins, yields;
    pthread_mutex_t turn; /* callers, one at a time */
    pthread_mutex_t lock;
    pthread_cond_t begun, finished;
    pthread_t *others;
};

typedef struct {
    potluck_pool *pool;
    int32_t thread;
} place;

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield is no pause on most ARM cores */
#endif
}

static int is_left(uint64_t ticket) { return (uint32_t)ticket < (uint32_t)(ticket >> 32); }

static void take_tasks(potluck_pool *pool, int32_t thread) {
    while (is_left(atomic_load(&pool->ticket))) {
        uint64_t ticket = atomic_fetch_add(&pool->ticket, 1);
        if (!is_left(ticket)) return;
        int32_t count = (int32_t)(ticket >> 32);
        pool->task(pool->context, (int32_t)(uint32_t)ticket, thread);
        if (atomic_fetch_add(&pool->done, 1) + 1 == count && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void wait_for_a_run(potluck_pool *pool, uint32_t seen) {
    for (int32_t i = 0; i < pool->spins; i++) {
        if (atomic_load_explicit(&pool->run, memory_order_relaxed) != seen) return;
        pause_briefly();
    }
    for (int32_t i = 0; i < pool->yields; i++) {
        if (atomic_load_explicit(&pool->run, memory_order_relaxed) != seen) return;
        sched_yield();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->run) == seen) pthread_cond_wait(&pool->begun, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    place at = *(place *)argument;
    free(argument);
    uint32_t seen = 0;
    while (1) {
        wait_for_a_run(at.pool, seen);
        seen = atomic_load(&at.pool->run);
        if (atomic_load(&at.pool->ends)) return NULL;
        take_tasks(at.pool, at.thread);
    }
}

/* Lets everybody know of a new run, or of the end. */
static void announce(potluck_pool *pool) {
    atomic_fetch_add(&pool->run, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->lock);
}

static void wait_for_the_end(potluck_pool *pool, int32_t count) {
    for (int32_t i = 0; i < pool->spins; i++) {
        if (atomic_load(&pool->done) == count) return;
        pause_briefly();
    }
    for (int32_t i = 0; i < pool->yields; i++) {
        if (atomic_load(&pool->done) == count) return;
        sched_yield();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->caller_sleeps, 1);
    while (atomic_load(&pool->done) != count) pthread_cond_wait(&pool->finished, &pool->lock);
    atomic_store(&pool->caller_sleeps, 0);
    pthread_mutex_unlock(&pool->lock);
}

void potluck_pool_run(potluck_pool *pool, potluck_task task, void *context, int32_t count) {
    if (pool == NULL) {
        for (int32_t i = 0; i < count; i++) task(context, i, 0);
        return;
    }
    if (count <= 0) return;
    pthread_mutex_lock(&pool->turn);
    pool->task = task;
    pool->context = context;
    atomic_store(&pool->done, 0);
    atomic_store(&pool->ticket, (uint64_t)(uint32_t)count << 32);
    if (count > 1 && pool->threads > 1) announce(pool);
    take_tasks(pool, 0);
    wait_for_the_end(pool, count);
    pthread_mutex_unlock(&pool->turn);
}

static int start_others(potluck_pool *pool) {
    for (int32_t thread = 1; thread < pool->threads; thread++) {
        place *at = malloc(sizeof *at);
        if (at) *at = (place){pool, thread};
        if (at == NULL || pthread_create(&pool->others[thread - 1], NULL, work, at)) {
            free(at);
            pool->threads = thread;
            return -1;
        }
    }
    return 0;
}

potluck_pool *potluck_pool_new(int32_t threads) {
    if (threads < 1) return NULL;
    void *memory = NULL;
    if (posix_memalign(&memory, LINE, sizeof(potluck_pool))) return NULL;
    potluck_pool *pool = memory;
    *pool = (potluck_pool){.threads = threads};
    /* With more threads than cores whoever spins keeps another from working. */
    pool->spins = threads <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 0;
    pool->yields = pool->spins ? YIELDS : 0;
    pthread_mutex_init(&pool->turn, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->others = calloc((size_t)threads, sizeof *pool->others);
    if (pool->others == NULL || start_others(pool)) {
        if (pool->others == NULL) pool->threads = 1;
        potluck_pool_free(pool);
        return NULL;
    }
    return pool;
}

void potluck_pool_free(potluck_pool *pool) {
    if (pool == NULL) return;
    atomic_store(&pool->ends, 1);
    announce(pool);
    for (int32_t thread = 1; thread < pool->threads; thread++)
        pthread_join(pool->others[thread - 1], NULL);
    free(pool->others);
    pthread_cond_destroy(&pool->begun);
    pthread_cond_destroy(&pool->finished);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->turn);
    free(pool);
}

int32_t potluck_pool_threads(const potluck_pool *pool) { return pool ? pool->threads : 1; }
