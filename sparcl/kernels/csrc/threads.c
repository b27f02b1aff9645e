/* A pool of threads that hand out the items of a job. Who computes an item does not matter to its result.
 *
 * The pool is our own rather than OpenMP's: it survives fork (a child starts with an empty pool) and does not meet
 * PyTorch's OpenMP threads. Workers look for a next job for a few microseconds, then sleep.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "kernels.h"

#define MAX_THREADS 256
#define SPINS 2000

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int workers;
    _Atomic unsigned round; /* grows with every job */
    unsigned hired[MAX_THREADS]; /* the round in which a worker came */
    _Atomic int next, running;
    int sleeping;
    job_function function;
    const void *job;
    int items, threads;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
static pthread_mutex_t one_job = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_items(int thread) {
    for (int item; (item = atomic_fetch_add(&pool.next, 1)) < pool.items;) pool.function(pool.job, item, thread);
}

static void *work(void *argument) {
    const int thread = (int)(intptr_t)argument;
    unsigned seen = pool.hired[thread];
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool.round) == seen; i++) relax();
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.mutex);
            pool.sleeping++;
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
            pool.sleeping--;
            pthread_mutex_unlock(&pool.mutex);
        }
        seen = atomic_load(&pool.round);
        if (thread < pool.threads) take_items(thread);
        atomic_fetch_sub(&pool.running, 1);
    }
    return 0;
}

static void lock_for_fork(void) {
    pthread_mutex_lock(&one_job);
    pthread_mutex_lock(&pool.mutex);
}

static void unlock_in_parent(void) {
    pthread_mutex_unlock(&pool.mutex);
    pthread_mutex_unlock(&one_job);
}

static void forget_in_child(void) { /* the parent's workers are not here */
    pthread_mutex_init(&one_job, 0);
    pthread_mutex_init(&pool.mutex, 0);
    pthread_cond_init(&pool.wake, 0);
    pool.workers = pool.sleeping = 0;
    atomic_store(&pool.running, 0);
}

static void at_fork(void) { pthread_atfork(lock_for_fork, unlock_in_parent, forget_in_child); }

/* Start workers until there are `workers`; as many as the system gives. Called between jobs. */
static void hire(int workers) {
    while (pool.workers < workers) {
        pthread_t id;
        pthread_attr_t detached;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        pool.hired[pool.workers + 1] = atomic_load(&pool.round);
        const int failed = pthread_create(&id, &detached, work, (void *)(intptr_t)(pool.workers + 1));
        pthread_attr_destroy(&detached);
        if (failed) return;
        pool.workers++;
    }
}

void parallel_for(job_function function, const void *job, int items, int threads) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > items) threads = items;
    if (threads <= 1) {
        for (int item = 0; item < items; item++) function(job, item, 0);
        return;
    }
    pthread_once(&once, at_fork);
    pthread_mutex_lock(&one_job);
    hire(threads - 1); /* fewer come where the system refuses */
    pool.function = function;
    pool.job = job;
    pool.items = items;
    pool.threads = threads;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.running, pool.workers);
    pthread_mutex_lock(&pool.mutex);
    atomic_fetch_add(&pool.round, 1);
    if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    take_items(0);
    for (int i = 0; atomic_load(&pool.running) > 0; i++) {
        if (i < SPINS)
            relax();
        else
            sched_yield();
    }
    pthread_mutex_unlock(&one_job);
}
